-- The statements of Trilane on PostgreSQL, each named like the method of the store that runs it; see sql/README.md.
-- Ids come as the text of an array ('{1,2}'): `= any(array)` seeks the primary key whatever the statistics say, where a join to
-- a JSON set made the planner read a whole index. What a status or a token must be stands in `case when … then true end`: their statistics
-- are always old here (none running, no token), by which the planner takes one row for granted and compares each with each; such an
-- expression it cannot look into, and a list of pairs inside is hashed. 1,000 outcomes: 90 ms by a nested loop, 12 ms so.

-- define ms: interval '1 millisecond'
-- define us: interval '1 microsecond'
-- define free: DispatchedAt is null and (Priority < 'high' or Priority > 'high' and Priority < 'low' or Priority > 'low' and Priority < 'medium' or Priority > 'medium')

-- session_a: limits of each session, enforced by the server: no statement, lock or open transaction outlives its client for long.
set statement_timeout = '30s'; set lock_timeout = '2s'; set idle_in_transaction_session_timeout = '30s'; set timezone = 'UTC'

-- ping: answers.
select 1

-- probe: gives back its parameter.
-- Params: 1 text.  Returns text.
select cast(? as text)

-- now: the database's clock.
-- Returns ms since 1970.
select cast(extract(epoch from now()) * 1000 as bigint)

-- schema_exists: whether there is a table of migrations.
-- Returns 1 or no row.
select 1 from pg_class where oid = to_regclass('SchemaVersion')

-- schema_create: the table of migrations.
create table if not exists SchemaVersion (Version integer primary key, Name varchar(100) not null, AppliedAt timestamptz not null default now())

-- schema_version: the last migration that ran.
-- Returns version, or null.
select max(Version) from SchemaVersion

-- schema_add: notes a migration that ran.
-- Params: 1 version  2 name.
insert into SchemaVersion (Version, Name) values (?, ?)

-- migrate_lock: waits until no other replica migrates, until the end of the transaction.
-- The number is an arbitrary one of our own ('trilane' in ASCII).
-- Other locks are waited for as long until then: a migration takes its time.
select set_config('lock_timeout', '25s', true), cast(pg_advisory_xact_lock(32777053529009765) as text)

-- keys_take: takes unique keys for jobs about to be stored. A key held by another job is left to it. Waits for other sessions' keys.
-- Params: 1 keys (JSON array of {unique_key, id}, sorted by key, so that two sessions never wait for each other).
insert into JobKeys (UniqueKey, JobId)
select k.unique_key, k.id from json_to_recordset(cast(? as json)) as k(unique_key text, id uuid)
on conflict do nothing

-- keys_held: who holds unique keys.
-- Params: 1 keys (JSON array of {unique_key, id}).  Returns unique_key, job id.
select UniqueKey, cast(JobId as text) from JobKeys
where UniqueKey = any(array(select k.unique_key from json_to_recordset(cast(? as json)) as k(unique_key text)))

-- keys_free: gives up the unique keys of jobs that ended.
-- Params: 1 keys (JSON array of {unique_key, id}).
delete from JobKeys using json_to_recordset(cast(? as json)) as k(unique_key text, id uuid)
where JobKeys.UniqueKey = k.unique_key and JobKeys.JobId = k.id

-- keys_free_of: gives up the unique keys of jobs that ended, as their rows name them.
-- Params: 1 seqs (array).
delete from JobKeys using Jobs
where Jobs.Seq = any(cast(? as bigint[])) and JobKeys.UniqueKey = Jobs.UniqueKey and JobKeys.JobId = Jobs.Id

-- submit: stores jobs. Those due within their horizon count as dispatched at the moment they are due; their id is then pushed by the caller.
-- Params: 1 jobs (JSON array, up to 1,000, of {id, type, payload, lane, max_retries, at_ms, delay_ms, horizon_ms (null: not dispatched), timeout_ms,
--         unique_key})  2 replica.
-- Returns seq, id, created_ms, run_ms, due_in_ms (null: not dispatched), in the order of the jobs.
with given as (
    select ord, id, type, payload, lane, max_retries, timeout_ms, unique_key, now() + horizon_ms * {ms} as horizon,
           case when at_ms is not null then to_timestamp(at_ms / 1000.0) else now() + coalesce(delay_ms, 0) * {ms} end as run_at
    from rows from (json_to_recordset(cast(? as json)) as
        (id uuid, type text, payload text, lane text, max_retries integer, at_ms bigint, delay_ms bigint, horizon_ms bigint, timeout_ms integer,
         unique_key text)) with ordinality as g(id, type, payload, lane, max_retries, at_ms, delay_ms, horizon_ms, timeout_ms, unique_key, ord)
)
insert into Jobs (Id, Type, Payload, Priority, MaxRetries, RunAt, TimeoutMs, UniqueKey, DispatchedAt, DispatchedBy)
select g.id, g.type, g.payload, g.lane, g.max_retries, g.run_at, g.timeout_ms, g.unique_key,
       case when g.run_at <= g.horizon then greatest(g.run_at, now()) end, case when g.run_at <= g.horizon then cast(? as bigint) end
from given as g
order by g.ord
returning Seq, cast(Id as text), cast(floor(extract(epoch from CreatedAt) * 1000) as bigint), cast(floor(extract(epoch from RunAt) * 1000) as bigint),
          cast(ceil(extract(epoch from DispatchedAt - now()) * 1000) as bigint)

-- submit_claimed: stores jobs that are due now, already claimed by the replica that stores them, under one new lease.
-- Params: 1 jobs (JSON array, up to 1,000, of {id, type, payload, lane, max_retries, timeout_ms})  2 replica  3 lease_ms  4 replica  5 replica.
-- Returns token, seq, id, created_ms.
with given as materialized (
    select nextval(pg_get_serial_sequence('Jobs', 'seq')) as seq, g.*
    from (select * from rows from (json_to_recordset(cast(? as json)) as (id uuid, type text, payload text, lane text, max_retries integer, timeout_ms integer))
              with ordinality as o(id, type, payload, lane, max_retries, timeout_ms, ord) order by ord) as g
), lease as (
    insert into Leases (ReplicaId, LeaseUntil, Seqs)
    select cast(? as bigint), now() + ? * {ms}, (select cast(json_agg(seq) as text) from given)
    returning Token
)
insert into Jobs (Seq, Id, Type, Payload, Priority, MaxRetries, RunAt, TimeoutMs, Status, StartedAt, LeaseToken, LeasedBy, DispatchedAt, DispatchedBy)
select g.seq, g.id, g.type, g.payload, g.lane, g.max_retries, now(), g.timeout_ms, 'running', now(), l.Token, cast(? as bigint), now(), cast(? as bigint)
from given as g cross join lease as l
order by g.seq
returning LeaseToken, Seq, cast(Id as text), cast(floor(extract(epoch from CreatedAt) * 1000) as bigint)

-- idempotency_add: remembers the results of a call. Fails if its key is there.
-- Params: 1 key  2 hash (hex)  3 results (JSON).
insert into IdempotencyKeys (IdempotencyKey, RequestHash, Results) values (?, ?, ?)

-- idempotency_find: the results of an earlier call.
-- Params: 1 key.  Returns hash, results.
select RequestHash, Results from IdempotencyKeys where IdempotencyKey = ?

-- regularise: puts the lanes that plain SQL wrote in other letters into lower case. The ranges are all but the three names: a seek.
-- In steps, each of one batch.
update Jobs set Priority = lower(trim(Priority)), UpdatedAt = now()
where Seq = any(array(select Seq from Jobs where {free} and lower(trim(Priority)) in ('high', 'medium', 'low') limit 1000))

-- odd_lanes: jobs of no known lane.
-- Params: 1 limit.  Returns seq, lane.
select Seq, Priority from Jobs where {free} limit ?

-- bury_odd: gives up jobs that cannot be dispatched, or read; a running one only under the given token, or if it was never claimed.
-- Params: 1 error  2 seqs (array)  3 token (-1: none).  Returns seq.
update Jobs set Status = 'failed', LastError = ?, DispatchedAt = now(), FinishedAt = now(), UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and Status not in ('completed', 'failed', 'cancelled')
  and (Status <> 'running' or coalesce(LeaseToken, -1) = ?)
returning Seq

-- set_aside: takes rows that were given up, or have ended already, off the list of what waits.
-- Params: 1 seqs (array).
update Jobs set DispatchedAt = now() where Seq = any(cast(? as bigint[])) and DispatchedAt is null

-- due: locks what is due within the horizon and not dispatched, each lane in the order of RunAt, then arrival. What another replica dispatches is left out.
-- Params: 1 lane  2 horizon_ms  3 limit.  Returns seq, status as written.
select Seq, Status from Jobs
where Priority = ? and DispatchedAt is null and RunAt <= now() + ? * {ms}
order by RunAt, Seq limit ? for update skip locked

-- next_due: when the first job of a lane that was not dispatched is due.
-- Params: 1 lane.  Returns due_in_ms, or no row.
select cast(greatest(ceil(extract(epoch from RunAt - now()) * 1000), 0) as bigint) from Jobs
where Priority = ? and DispatchedAt is null order by RunAt, Seq limit 1

-- dispatch: marks jobs as dispatched at the moment they are due.
-- Params: 1 replica  2 seqs (array).  Returns seq, due_in_ms.
update Jobs set DispatchedAt = greatest(RunAt, now()), DispatchedBy = ?, Status = lower(Status), UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and DispatchedAt is null
returning Seq, cast(ceil(extract(epoch from DispatchedAt - now()) * 1000) as bigint)

-- starved: which of the given jobs wait for a worker, and which of those have been due for longer than a time.
-- Params: 1 time_ms  2 seqs (array).  Returns seq, 1 or 0.
select Seq, case when RunAt < now() - ? * {ms} then 1 else 0 end from Jobs
where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- promote: marks jobs as dispatched now, whose ids leave their lane for the end of a higher one.
-- Params: 1 replica  2 seqs (array).
update Jobs set DispatchedAt = now(), DispatchedBy = ?, UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- sweep: where to look for lost ids in each lane: what was dispatched after one moment, up to another: a grace before now, and before the id at the
-- lane's head was (-1: the lane is empty). Null: the head tells nothing, for no row knows it, it is not dispatched, or it was released, and came to
-- the head from there (a lease, but nobody's).
-- Moments are microseconds since 1970.
-- Params: 1 look_back_ms  2 grace_ms  3 head of high  4 of medium  5 of low.  Returns lane, after, until.
select l.Lane, cast(extract(epoch from l.SweptTo - ? * {ms}) * 1000000 as bigint), cast(extract(epoch from b.before - ? * {ms}) * 1000000 as bigint) - 1
from (values ('high', cast(? as bigint)), ('medium', cast(? as bigint)), ('low', cast(? as bigint))) as g(lane, head)
join Lanes as l on l.Lane = g.lane
cross join lateral (select case when g.head = -1 then now() else (
    select case when j.DispatchedAt > now() then now() else j.DispatchedAt end from Jobs as j
    where j.Seq = g.head and not (j.LeaseToken is not null and j.LeasedBy is null)) end as before) as b

-- dispatched: a page of what was dispatched to a lane, of which those still waiting for a worker are returned. It ends with the row behind a number
-- of others, and all of its moment; the index gives the order. Where nothing waits, one row tells the end alone. The end is a subquery of its own,
-- and so a bound of the index: as a column to join with, it is left to a filter by a plan that was made while the table was empty.
-- Params: 1 lane  2 after  3 until  4 others  5 until  6 lane  7 after (moments).  Returns end (moment), seq, replica, dispatched (moment).
with page as materialized (
    select coalesce((select DispatchedAt from Jobs
                     where Priority = ? and DispatchedAt > timestamptz 'epoch' + ? * {us} and DispatchedAt <= timestamptz 'epoch' + ? * {us}
                     order by DispatchedAt offset ? limit 1), timestamptz 'epoch' + ? * {us}) as last
)
select (select cast(extract(epoch from last) * 1000000 as bigint) from page), j.Seq, j.DispatchedBy, cast(extract(epoch from j.DispatchedAt) * 1000000 as bigint)
from (select 1 as one) as o left join Jobs as j
    on j.Priority = ? and j.DispatchedAt > timestamptz 'epoch' + ? * {us} and j.DispatchedAt <= (select last from page) and j.Status in ('queued', 'retrying')

-- replicas: which replicas are known, and which of them are dead.
-- Params: 1 dead_after_ms.  Returns now (moment), replica (null: none is known), 1 if dead.
select cast(extract(epoch from now()) * 1000000 as bigint), r.Id, case when r.SeenAt < now() - ? * {ms} then 1 else 0 end
from (select 1 as one) as o left join Replicas as r on true

-- recall: gives ids back to dispatch.
-- Params: 1 seqs (array).
update Jobs set DispatchedAt = null, DispatchedBy = null, UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- swept: notes that nothing is lost in a lane up to a moment, but for transactions still open. Never in the future, where the clock was set back.
-- Params: 1 to (moment)  2 lane.
update Lanes set SweptTo = least(now(), greatest(SweptTo, timestamptz 'epoch' + ? * {us})) where Lane = ?

-- claim: takes the queued jobs among the given for one replica, under one new lease; where there are none, without a lease. A job taken by another
-- meanwhile is left out; a row that another session holds is waited for.
-- Params: 1 replica  2 lease_ms  3 seqs (JSON array)  4 seqs (array, up to 1,000)  5 early_ms  6 replica  7 seqs (array)  8 early_ms.
-- Returns token, seq, id, type, payload, lane, retry_count, max_retries, timeout_ms, unique_key, created_ms.
with lease as (
    insert into Leases (ReplicaId, LeaseUntil, Seqs) select cast(? as bigint), now() + ? * {ms}, ?
    where exists (select 1 from Jobs where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and RunAt <= now() + ? * {ms})
    returning Token
)
update Jobs set Status = 'running', StartedAt = now(), UpdatedAt = now(), LeaseToken = (select Token from lease), LeasedBy = ?,
                DispatchedAt = coalesce(DispatchedAt, now())
where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and RunAt <= now() + ? * {ms}
returning LeaseToken, Seq, cast(Id as text), Type, Payload, Priority, RetryCount, MaxRetries, TimeoutMs, UniqueKey,
          cast(floor(extract(epoch from CreatedAt) * 1000) as bigint)

-- claim_free: as claim, but a row that another session holds is left out. Locking each row first makes it half as dear again.
-- Params: 1 seqs (array, up to 1,000)  2 early_ms  3 replica  4 lease_ms  5 seqs (JSON array)  6 replica.
-- Returns token, seq, id, type, payload, lane, retry_count, max_retries, timeout_ms, unique_key, created_ms.
with free as materialized (
    select Seq from Jobs where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and RunAt <= now() + ? * {ms} for update skip locked
), lease as (
    insert into Leases (ReplicaId, LeaseUntil, Seqs) select cast(? as bigint), now() + ? * {ms}, ? where exists (select 1 from free) returning Token
)
update Jobs set Status = 'running', StartedAt = now(), UpdatedAt = now(), LeaseToken = (select Token from lease), LeasedBy = ?,
                DispatchedAt = coalesce(DispatchedAt, now())
where Seq = any(array(select Seq from free))
returning LeaseToken, Seq, cast(Id as text), Type, Payload, Priority, RetryCount, MaxRetries, TimeoutMs, UniqueKey,
          cast(floor(extract(epoch from CreatedAt) * 1000) as bigint)

-- unclaimed: which of the given jobs, left out by a claim, wait for a worker all the same.
-- Params: 1 seqs (array).  Returns seq.
select Seq from Jobs where Seq = any(cast(? as bigint[])) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- held_elsewhere: locks the rows of the given jobs, without waiting, but for those that another session holds.
-- Params: 1 seqs (array)  2 seqs (array).  Returns seq of those.
with free as materialized (select Seq from Jobs where Seq = any(cast(? as bigint[])) for update skip locked)
select Seq from Jobs where Seq = any(cast(? as bigint[])) except select Seq from free

-- next: the ids that claim_next takes: due and not dispatched.
-- Params: 1 lane  2 limit.  Returns seq, status as written.
select Seq, Status from Jobs where Priority = ? and DispatchedAt is null and RunAt <= now() order by RunAt, Seq limit ? for update skip locked

-- leases_unknown: leases that a replica took without learning of it, as when its connection broke.
-- Params: 1 replica  2 tokens it knows (array).  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where ReplicaId = ? and Token <> all(cast(? as bigint[]))

-- release: gives running jobs back, their attempt not consumed, as dispatched by this replica; their ids are then pushed by the caller.
-- Params: 1 tokens (array)  2 seqs (array), the n-th token belonging to the n-th seq  3 replica  4 seqs (array).  Returns seq, lane.
with held as (select unnest(cast(? as bigint[])) as token, unnest(cast(? as bigint[])) as seq)
update Jobs set Status = case when RetryCount > 0 then 'retrying' else 'queued' end, LeasedBy = null, StartedAt = null,
                DispatchedAt = now(), DispatchedBy = ?, UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and case when Status = 'running' and (Seq, LeaseToken) in (select seq, token from held) then true end
returning Seq, Priority

-- complete: marks running jobs as completed, each under its own token.
-- Params: 1 tokens (array)  2 seqs (array), the n-th token belonging to the n-th seq  3 seqs (array).  Returns seq, token.
with held as (select unnest(cast(? as bigint[])) as token, unnest(cast(? as bigint[])) as seq)
update Jobs set Status = 'completed', FinishedAt = now(), UpdatedAt = now()
where Seq = any(cast(? as bigint[])) and case when Status = 'running' and (Seq, LeaseToken) in (select seq, token from held) then true end
returning Seq, LeaseToken

-- fail: retries or buries running jobs, each under its own token. A retry due within the horizon counts as dispatched by this replica.
-- Params: 1 failures (JSON array of {seq, token, bury, error, delay_ms})  2 replica  3 horizon_ms (null: dispatch none)  4 seqs (array).
-- Returns seq, token, due_in_ms (null: not dispatched).
with f as (
    select * from json_to_recordset(cast(? as json)) as f(seq bigint, token bigint, bury boolean, error text, delay_ms bigint)
), d as (
    select cast(? as bigint) as replica, cast(? as bigint) as horizon_ms
)
update Jobs set
    Status = case when f.bury then 'failed' else 'retrying' end,
    RetryCount = case when f.bury then RetryCount else RetryCount + 1 end,
    LastError = f.error, UpdatedAt = now(),
    FinishedAt = case when f.bury then now() end,
    RunAt = case when f.bury then RunAt else now() + f.delay_ms * {ms} end,
    DispatchedAt = case when f.bury then DispatchedAt when f.delay_ms <= d.horizon_ms then now() + f.delay_ms * {ms} end,
    DispatchedBy = case when f.bury then DispatchedBy when f.delay_ms <= d.horizon_ms then d.replica end
from f cross join d
where Jobs.Seq = any(cast(? as bigint[])) and Jobs.Seq = f.seq and case when Jobs.LeaseToken = f.token and Jobs.Status = 'running' then true end
returning Jobs.Seq, Jobs.LeaseToken, case when f.bury or f.delay_ms > coalesce(d.horizon_ms, -1) then null else f.delay_ms end

-- outcomes_stored: what the table has of the outcomes of attempts, their own or that of an end of their lease.
-- Params: 1 tokens (array)  2 seqs (array), the n-th token belonging to the n-th seq  3 replica.
-- Returns seq, token, is_completed (0, 1), error (null: no failure), due_in_ms (null: not for this replica to push).
with held as materialized (
    select unnest(cast(? as bigint[])) as token, unnest(cast(? as bigint[])) as seq
), d as (
    select cast(? as bigint) as replica
)
select j.Seq, h.token, case when j.Status = 'completed' and j.LeaseToken = h.token then 1 else 0 end,
    (select a.Error from JobAttempts as a where a.Seq = h.seq and a.Token = h.token),
    case when j.Status = 'retrying' and j.LeaseToken = h.token and j.DispatchedBy = d.replica and j.DispatchedAt is not null
        then cast(greatest(extract(epoch from j.RunAt - now()) * 1000, 0) as bigint) end
from held as h cross join d inner join Jobs as j on j.Seq = h.seq
where j.Seq = any(array(select seq from held))

-- attempts_add: keeps the errors of failed attempts.
-- Params: 1 failures (JSON array of {seq, token, attempt, error})  2 seqs (array).
insert into JobAttempts (Seq, Token, Attempt, StartedAt, Error)
select f.seq, f.token, f.attempt, j.StartedAt, f.error
from json_to_recordset(cast(? as json)) as f(seq bigint, token bigint, attempt integer, error text)
join Jobs as j on j.Seq = f.seq
where j.Seq = any(cast(? as bigint[]))
on conflict do nothing

-- dead_letters_add: one dead letter for each job just buried.
-- Params: 1 letters (JSON array of {seq, id, reason})  2 seqs (array).
insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason)
select l.id, j.Id, j.Type, coalesce(j.Payload, 'null'), j.Priority, l.reason
from json_to_recordset(cast(? as json)) as l(seq bigint, id uuid, reason text)
join Jobs as j on j.Seq = l.seq
where j.Seq = any(cast(? as bigint[]))

-- stats_add: counts outcomes by the minute.
-- Params: 1 counts (JSON array of {lane, type, completed, retried, failed, duration_ms}, each lane and type once)  2 replica.
insert into JobStats (Minute, Lane, Type, ReplicaId, Completed, Retried, Failed, DurationMs)
select date_trunc('minute', now()), c.lane, c.type, r.id, c.completed, c.retried, c.failed, c.duration_ms
from json_to_recordset(cast(? as json)) as c(lane text, type text, completed bigint, retried bigint, failed bigint, duration_ms bigint)
cross join (select cast(? as bigint) as id) as r
on conflict (Minute, Lane, Type, ReplicaId) do update set
    Completed = JobStats.Completed + excluded.Completed, Retried = JobStats.Retried + excluded.Retried,
    Failed = JobStats.Failed + excluded.Failed, DurationMs = JobStats.DurationMs + excluded.DurationMs

-- leases_renew: renews leases from now. One that another replica has ended is not there any more.
-- Params: 1 lease_ms  2 tokens (array).  Returns token.
update Leases set LeaseUntil = now() + ? * {ms} where Token = any(cast(? as bigint[])) returning Token

-- leases_end: removes leases whose jobs all have their outcome.
-- Params: 1 tokens (array).
delete from Leases where Token = any(cast(? as bigint[]))

-- not_held: which of the given jobs are no longer running under the given tokens: cancelled, or lost.
-- Params: 1 tokens (array)  2 seqs (array), the n-th token belonging to the n-th seq.  Returns seq, token.
with held as materialized (select unnest(cast(? as bigint[])) as token, unnest(cast(? as bigint[])) as seq)
select seq, token from held
where case when (seq, token) not in (
    select Jobs.Seq, LeaseToken from Jobs
    where Jobs.Seq = any(array(select seq from held)) and case when Status = 'running' and LeaseToken is not null then true end
) then true end

-- leases_expired: locks the leases that ran out.
-- Params: 1 limit.  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where LeaseUntil < now() order by LeaseUntil limit ? for update skip locked

-- lease_expired: locks one lease if it ran out.
-- Params: 1 token.  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where Token = ? and LeaseUntil < now() for update skip locked

-- expired_jobs: the jobs still running under a lease.
-- Params: 1 token  2 seqs (array).  Returns seq, type, lane, retry_count, max_retries, id, unique_key.
select Seq, Type, Priority, RetryCount, MaxRetries, cast(Id as text), UniqueKey from Jobs
where LeaseToken = ? and Seq = any(cast(? as bigint[])) and Status = 'running'

-- beat: shows this replica as alive.
-- Params: 1 replica  2 name  3 holds  4 dead_after_ms.  Returns the number of expired leases, the number of dead replicas.
with beat as (
    insert into Replicas (Id, Name, Holds) values (?, ?, ?)
    on conflict (Id) do update set SeenAt = now(), Holds = excluded.Holds
)
select (select count(*) from Leases where LeaseUntil < now()),
       (select count(*) from Replicas where SeenAt < now() - ? * {ms})

-- replicas_bury: forgets those of the given replicas that are dead, once their ids are recalled.
-- Params: 1 replicas (array)  2 dead_after_ms.
delete from Replicas where Id = any(cast(? as bigint[])) and SeenAt < now() - ? * {ms}

-- replica_gone: forgets one replica.
-- Params: 1 replica.
delete from Replicas where Id = ?

-- job: one job.
-- Params: 1 id.  Returns the columns of a job.
select Seq, cast(Id as text), Type, Payload, Priority, MaxRetries, RetryCount, Status,
       cast(floor(extract(epoch from CreatedAt) * 1000) as bigint), cast(floor(extract(epoch from UpdatedAt) * 1000) as bigint),
       cast(floor(extract(epoch from RunAt) * 1000) as bigint), cast(floor(extract(epoch from StartedAt) * 1000) as bigint),
       cast(floor(extract(epoch from FinishedAt) * 1000) as bigint), TimeoutMs, UniqueKey, LastError
from Jobs where Id = cast(? as uuid)

-- jobs: a page of jobs in the order of arrival. A filter that is null lets all through.
-- Params: 1 after (seq)  2 status  3 type  4 lane  5 since_ms  6 limit.  Returns the columns of a job.
select j.Seq, cast(j.Id as text), j.Type, j.Payload, j.Priority, j.MaxRetries, j.RetryCount, j.Status,
       cast(floor(extract(epoch from j.CreatedAt) * 1000) as bigint), cast(floor(extract(epoch from j.UpdatedAt) * 1000) as bigint),
       cast(floor(extract(epoch from j.RunAt) * 1000) as bigint), cast(floor(extract(epoch from j.StartedAt) * 1000) as bigint),
       cast(floor(extract(epoch from j.FinishedAt) * 1000) as bigint), j.TimeoutMs, j.UniqueKey, j.LastError
from Jobs as j
where j.Seq > ? and lower(j.Status) = coalesce(cast(? as text), lower(j.Status)) and j.Type = coalesce(cast(? as text), j.Type)
  and lower(j.Priority) = coalesce(cast(? as text), lower(j.Priority)) and j.CreatedAt >= coalesce(to_timestamp(cast(? as bigint) / 1000.0), j.CreatedAt)
order by j.Seq limit ?

-- jobs_by_id: jobs by their public ids, in any order.
-- Params: 1 ids (JSON array, up to 1,000).  Returns the columns of a job.
select Seq, cast(Id as text), Type, Payload, Priority, MaxRetries, RetryCount, Status,
       cast(floor(extract(epoch from CreatedAt) * 1000) as bigint), cast(floor(extract(epoch from UpdatedAt) * 1000) as bigint),
       cast(floor(extract(epoch from RunAt) * 1000) as bigint), cast(floor(extract(epoch from StartedAt) * 1000) as bigint),
       cast(floor(extract(epoch from FinishedAt) * 1000) as bigint), TimeoutMs, UniqueKey, LastError
from Jobs where Id = any(array(select cast(value as uuid) from json_array_elements_text(cast(? as json)) as i(value)))

-- attempts: the failed attempts of a job, oldest first.
-- Params: 1 id.  Returns attempt, token, started_ms, finished_ms, error.
select a.Attempt, a.Token, cast(floor(extract(epoch from a.StartedAt) * 1000) as bigint), cast(floor(extract(epoch from a.FinishedAt) * 1000) as bigint), a.Error
from JobAttempts as a join Jobs as j on j.Seq = a.Seq where j.Id = cast(? as uuid) order by a.Token

-- dead_letters: a page of dead letters in the order in which they came.
-- Params: 1 after (seq)  2 type  3 lane  4 since_ms  5 limit.  Returns seq, id, original_job_id, type, payload, lane, reason, failed_ms.
select d.Seq, cast(d.Id as text), cast(d.OriginalJobId as text), d.Type, d.Payload, d.Priority, d.Reason, cast(floor(extract(epoch from d.FailedAt) * 1000) as bigint)
from FailedJobs as d
where d.Seq > ? and d.Type = coalesce(cast(? as text), d.Type) and lower(d.Priority) = coalesce(cast(? as text), lower(d.Priority))
  and d.FailedAt >= coalesce(to_timestamp(cast(? as bigint) / 1000.0), d.FailedAt)
order by d.Seq limit ?

-- cancel: withdraws a job that is not done. A running one keeps running until its replica notices; its outcome is refused.
-- DispatchedAt is set so that the row leaves the index of what waits.
-- Params: 1 id.  Returns seq.
update Jobs set Status = 'cancelled', FinishedAt = now(), UpdatedAt = now(), DispatchedAt = coalesce(DispatchedAt, now())
where Id = cast(? as uuid) and lower(Status) in ('queued', 'retrying', 'running')
returning Seq

-- dead_letter_find: locks a dead letter by its own id or its job's.
-- Params: 1 id  2 id.  Returns id, job id, the job's unique key.
select cast(d.Id as text), cast(d.OriginalJobId as text), (select UniqueKey from Jobs where Jobs.Id = d.OriginalJobId)
from FailedJobs as d where d.Id = cast(? as uuid) or d.OriginalJobId = cast(? as uuid) order by d.Seq desc limit 1 for update

-- revive: queues a failed job anew, as dispatched now by this replica; its id is then pushed by the caller. Not one of no known lane, for
-- a lost id is found by its lane.
-- Params: 1 replica  2 job id.  Returns seq.
update Jobs set Status = 'queued', RetryCount = 0, RunAt = now(), StartedAt = null, FinishedAt = null, DispatchedAt = now(), DispatchedBy = ?,
                LeaseToken = null, LeasedBy = null, UpdatedAt = now(), Priority = lower(trim(Priority))
where Id = cast(? as uuid) and Status = 'failed' and lower(trim(Priority)) in ('high', 'medium', 'low')
returning Seq

-- revive_lost: queues a job anew from its dead letter alone, for a job whose row is gone.
-- Params: 1 replica  2 dead letter id.  Returns seq.
insert into Jobs (Id, Type, Payload, Priority, DispatchedAt, DispatchedBy)
select d.OriginalJobId, d.Type, d.Payload, lower(d.Priority), now(), cast(? as bigint) from FailedJobs as d
where d.Id = cast(? as uuid) and lower(d.Priority) in ('high', 'medium', 'low') and not exists (select 1 from Jobs where Jobs.Id = d.OriginalJobId)
returning Seq

-- dead_letter_delete: removes a dead letter.
-- Params: 1 id.
delete from FailedJobs where Id = cast(? as uuid)

-- prune_scan: a page of the oldest jobs, to find those to delete.
-- Params: 1 kept_ms  2 kept_ms  3 after (seq)  4 limit.  Returns seq, 1 if it ended long enough ago, 1 if it was stored long enough ago.
select Seq, case when Status in ('completed', 'cancelled') and FinishedAt < now() - ? * {ms} then 1 else 0 end,
       case when CreatedAt < now() - ? * {ms} then 1 else 0 end
from Jobs where Seq > ? order by Seq limit ?

-- prune_jobs: deletes ended jobs.
-- Params: 1 seqs (array).
delete from Jobs where Seq = any(cast(? as bigint[])) and Status in ('completed', 'cancelled')

-- prune_attempts: deletes the attempts of jobs that are gone.
-- Params: 1 seqs (array).
delete from JobAttempts where Seq = any(cast(? as bigint[]))

-- idempotency_old: how many results of old calls there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
select count(*) from (select 1 from IdempotencyKeys where CreatedAt < now() - ? * {ms} limit ?) as o

-- prune_idempotency: forgets the results of the oldest calls.
-- Params: 1 kept_ms  2 limit.
delete from IdempotencyKeys
where IdempotencyKey = any(array(select IdempotencyKey from IdempotencyKeys where CreatedAt < now() - ? * {ms} order by CreatedAt limit ?))

-- stats_old: how many old rows of statistics there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
select count(*) from (select 1 from JobStats where Minute < now() - ? * {ms} limit ?) as o

-- prune_stats: forgets the oldest statistics. No row of a past minute is changed, so its place (ctid) is still its own.
-- Params: 1 kept_ms  2 limit.
delete from JobStats where ctid = any(array(select ctid from JobStats where Minute < now() - ? * {ms} order by Minute limit ?))
