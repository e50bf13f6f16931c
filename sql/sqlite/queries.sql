-- The statements of Trilane on SQLite, each named like the method of the store that runs it; see sql/README.md.
-- The driver returns no rows from RETURNING, so a statement that returns rows has a companion that runs in the same transaction, one
-- that was begun as `immediate`. `name_before` picks the rows before the change, `name_after` reads them after it.

-- define now: cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)
-- define free: Seq in (select Seq from Jobs where DispatchedAt is null and Priority < 'high' union all select Seq from Jobs where DispatchedAt is null and Priority > 'high' and Priority < 'low' union all select Seq from Jobs where DispatchedAt is null and Priority > 'low' and Priority < 'medium' union all select Seq from Jobs where DispatchedAt is null and Priority > 'medium')

-- session_a: readers do not wait for the writer.
pragma journal_mode = wal

-- session_b: an acknowledged job survives a power cut.
pragma synchronous = full

-- session_c: the write-ahead log is carried over at about 4 MB.
pragma wal_autocheckpoint = 1000

-- session_d: 16 MB of pages in memory.
pragma cache_size = -16000

-- ping: answers.
select 1

-- probe: gives back its parameter.
-- Params: 1 text.  Returns text.
select cast(? as text)

-- now: the database's clock.
-- Returns ms since 1970.
select {now}

-- schema_exists: whether there is a table of migrations.
-- Returns 1 or no row.
select 1 from sqlite_master where type = 'table' and name = 'SchemaVersion'

-- schema_create: the table of migrations.
create table if not exists SchemaVersion (Version integer primary key, Name text not null, AppliedAt integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)))

-- schema_version: the last migration that ran.
-- Returns version, or null.
select max(Version) from SchemaVersion

-- schema_add: notes a migration that ran.
-- Params: 1 version  2 name.
insert into SchemaVersion (Version, Name) values (?, ?)

-- migrate_lock: nothing to do, for `begin immediate` locks the file.
select 1

-- keys_take: takes unique keys for jobs about to be stored. A key held by another job is left to it.
-- Params: 1 keys (JSON array of {unique_key, id}).
insert or ignore into JobKeys (UniqueKey, JobId)
select json_extract(value, '$.unique_key'), json_extract(value, '$.id') from json_each(?)

-- keys_held: who holds unique keys.
-- Params: 1 keys (JSON array of {unique_key, id}).  Returns unique_key, job id.
select UniqueKey, JobId from JobKeys where UniqueKey in (select json_extract(value, '$.unique_key') from json_each(?))

-- keys_free: gives up the unique keys of jobs that ended.
-- Params: 1 keys (JSON array of {unique_key, id}).
delete from JobKeys where (UniqueKey, JobId) in (select json_extract(value, '$.unique_key'), json_extract(value, '$.id') from json_each(?))

-- keys_free_of: gives up the unique keys of jobs that ended, as their rows name them.
-- Params: 1 seqs (array).
delete from JobKeys where (UniqueKey, JobId) in (select UniqueKey, Id from Jobs where Seq in (select value from json_each(?)) and UniqueKey is not null)

-- submit: stores jobs. Those due within their horizon count as dispatched at the moment they are due; their id is then pushed by the caller.
-- Params: 1 jobs (JSON array, up to 1,000, of {id, type, payload, lane, max_retries, at_ms, delay_ms, horizon_ms (null: not dispatched), timeout_ms,
--         unique_key})  2 replica.
insert into Jobs (Id, Type, Payload, Priority, MaxRetries, RunAt, TimeoutMs, UniqueKey, DispatchedAt, DispatchedBy)
select g.id, g.type, g.payload, g.lane, g.max_retries, g.run_at, g.timeout_ms, g.unique_key,
       case when g.run_at <= {now} + g.horizon_ms then max(g.run_at, {now}) end, case when g.run_at <= {now} + g.horizon_ms then d.replica end
from (select key, json_extract(value, '$.id') as id, json_extract(value, '$.type') as type, json_extract(value, '$.payload') as payload,
             json_extract(value, '$.lane') as lane, json_extract(value, '$.max_retries') as max_retries,
             coalesce(json_extract(value, '$.at_ms'), {now} + coalesce(json_extract(value, '$.delay_ms'), 0)) as run_at,
             json_extract(value, '$.horizon_ms') as horizon_ms, json_extract(value, '$.timeout_ms') as timeout_ms,
             json_extract(value, '$.unique_key') as unique_key
      from json_each(?)) as g
cross join (select ? as replica) as d
order by g.key

-- submit_after: the jobs just stored.
-- Params: 1 jobs (JSON array).  Returns seq, id, created_ms, run_ms, due_in_ms (null: not dispatched).
select Seq, Id, CreatedAt, RunAt, max(DispatchedAt - {now}, 0)
from Jobs where Id in (select json_extract(value, '$.id') from json_each(?)) order by Seq

-- idempotency_add: remembers the results of a call. Fails if its key is there.
-- Params: 1 key  2 hash (hex)  3 results (JSON).
insert into IdempotencyKeys (IdempotencyKey, RequestHash, Results) values (?, ?, ?)

-- idempotency_find: the results of an earlier call.
-- Params: 1 key.  Returns hash, results.
select RequestHash, Results from IdempotencyKeys where IdempotencyKey = ?

-- regularise: puts the lanes that plain SQL wrote in other letters into lower case. The ranges are all but the three names, each a seek of its own.
-- In steps, each of one batch.
update Jobs set Priority = lower(trim(Priority)), UpdatedAt = {now}
where Seq in (select Seq from Jobs where {free} and lower(trim(Priority)) in ('high', 'medium', 'low') limit 1000)

-- odd_lanes: jobs of no known lane.
-- Params: 1 limit.  Returns seq, lane.
select Seq, Priority from Jobs where {free} limit ?

-- bury_odd_before: the jobs that bury_odd gives up.
-- Params: 1 seqs (array)  2 token (-1: none).  Returns seq.
select Seq from Jobs where Seq in (select value from json_each(?)) and Status not in ('completed', 'failed', 'cancelled')
  and (Status <> 'running' or coalesce(LeaseToken, -1) = ?)

-- bury_odd: gives up jobs that cannot be dispatched, or read; a running one only under the given token, or if it was never claimed.
-- Params: 1 error  2 seqs (array)  3 token (-1: none).
update Jobs set Status = 'failed', LastError = ?, DispatchedAt = {now}, FinishedAt = {now}, UpdatedAt = {now}
where Seq in (select value from json_each(?)) and Status not in ('completed', 'failed', 'cancelled')
  and (Status <> 'running' or coalesce(LeaseToken, -1) = ?)

-- set_aside: takes rows that were given up, or have ended already, off the list of what waits.
-- Params: 1 seqs (array).
update Jobs set DispatchedAt = {now} where Seq in (select value from json_each(?)) and DispatchedAt is null

-- due: what is due within the horizon and not dispatched, each lane in the order of RunAt, then arrival.
-- Params: 1 lane  2 horizon_ms  3 limit.  Returns seq, status as written.
select Seq, Status from Jobs where Priority = ? and DispatchedAt is null and RunAt <= {now} + ? order by RunAt, Seq limit ?

-- next_due: when the first job of a lane that was not dispatched is due.
-- Params: 1 lane.  Returns due_in_ms, or no row.
select max(RunAt - {now}, 0) from Jobs where Priority = ? and DispatchedAt is null order by RunAt, Seq limit 1

-- dispatch_before: the jobs that dispatch marks.
-- Params: 1 seqs (array).  Returns seq, due_in_ms.
select Seq, max(RunAt - {now}, 0) from Jobs where Seq in (select value from json_each(?)) and DispatchedAt is null

-- dispatch: marks jobs as dispatched at the moment they are due.
-- Params: 1 replica  2 seqs (array).
update Jobs set DispatchedAt = max(RunAt, {now}), DispatchedBy = ?, Status = lower(Status), UpdatedAt = {now}
where Seq in (select value from json_each(?)) and DispatchedAt is null

-- starved: which of the given jobs wait for a worker, and which of those have been due for longer than a time.
-- Params: 1 time_ms  2 seqs (array).  Returns seq, 1 or 0.
select Seq, RunAt < {now} - ? from Jobs
where Seq in (select value from json_each(?)) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- promote: marks jobs as dispatched now, whose ids leave their lane for the end of a higher one.
-- Params: 1 replica  2 seqs (array).
update Jobs set DispatchedAt = {now}, DispatchedBy = ?, UpdatedAt = {now}
where Seq in (select value from json_each(?)) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- sweep: where to look for lost ids in each lane: what was dispatched after one moment, up to another: a grace before now, and before the id at the
-- lane's head was (-1: the lane is empty). Null: the head tells nothing, for no row knows it, it is not dispatched, or it was released, and came to
-- the head from there (a lease, but nobody's).
-- Moments are milliseconds since 1970.
-- Params: 1 look_back_ms  2 grace_ms  3 head of high  4 of medium  5 of low.  Returns lane, after, until.
select l.Lane, l.SweptTo - g.look_back,
       case when g.head = -1 then {now} else (
           select min(j.DispatchedAt, {now}) from Jobs as j where j.Seq = g.head and not (j.LeaseToken is not null and j.LeasedBy is null)) end - g.grace - 1
from (select p.look_back, p.grace, h.column1 as lane, case h.column1 when 'high' then p.high when 'medium' then p.medium else p.low end as head
      from (values ('high'), ('medium'), ('low')) as h
      cross join (select ? as look_back, ? as grace, ? as high, ? as medium, ? as low) as p) as g
join Lanes as l on l.Lane = g.lane

-- dispatched: a page of what was dispatched to a lane, of which those still waiting for a worker are returned. It ends with the row behind a number
-- of others, and all of its moment; the index gives the order. Where nothing waits, one row tells the end alone.
-- Params: 1 lane  2 after  3 until  4 others  5 until  6 lane  7 after (moments).  Returns end (moment), seq, replica, dispatched (moment).
select p.last, j.Seq, j.DispatchedBy, j.DispatchedAt
from (select coalesce((select DispatchedAt from Jobs where Priority = ? and DispatchedAt > ? and DispatchedAt <= ?
                       order by DispatchedAt limit 1 offset ?), ?) as last) as p
left join Jobs as j on j.Priority = ? and j.DispatchedAt > ? and j.DispatchedAt <= p.last and j.Status in ('queued', 'retrying')

-- replicas: which replicas are known, and which of them are dead.
-- Params: 1 dead_after_ms.  Returns now (moment), replica (null: none is known), 1 if dead.
select {now}, r.Id, coalesce(r.SeenAt < {now} - ?, 0) from (select 1 as one) as o left join Replicas as r on true

-- recall: gives ids back to dispatch.
-- Params: 1 seqs (array).
update Jobs set DispatchedAt = null, DispatchedBy = null, UpdatedAt = {now}
where Seq in (select value from json_each(?)) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- swept: notes that nothing is lost in a lane up to a moment, but for transactions still open. Never in the future, where the clock was set back.
-- Params: 1 to (moment)  2 lane.
update Lanes set SweptTo = min({now}, max(SweptTo, ?)) where Lane = ?

-- lease_add: begins a lease.
-- Params: 1 replica  2 lease_ms  3 seqs (JSON array).
insert into Leases (ReplicaId, LeaseUntil, Seqs) select r.id, {now} + r.lease_ms, r.seqs
from (select ? as id, ? as lease_ms, ? as seqs) as r

-- lease_add_after: the token of the lease just begun.
-- Returns token.
select last_insert_rowid()

-- claim: takes the queued jobs among the given for one replica. A job taken by another meanwhile is left out.
-- Params: 1 token  2 replica  3 seqs (array, up to 1,000)  4 early_ms.
update Jobs set Status = 'running', StartedAt = {now}, UpdatedAt = {now}, LeaseToken = ?, LeasedBy = ?,
                DispatchedAt = coalesce(DispatchedAt, {now})
where Seq in (select value from json_each(?)) and Status in ('queued', 'retrying') and RunAt <= {now} + ?

-- claim_after: the jobs just claimed.
-- Params: 1 seqs (array)  2 token.
-- Returns token, seq, id, type, payload, lane, retry_count, max_retries, timeout_ms, unique_key, created_ms.
select LeaseToken, Seq, Id, Type, Payload, Priority, RetryCount, MaxRetries, TimeoutMs, UniqueKey, CreatedAt
from Jobs where Seq in (select value from json_each(?)) and LeaseToken = ?

-- unclaimed: which of the given jobs, left out by a claim, wait for a worker all the same.
-- Params: 1 seqs (array).  Returns seq.
select Seq from Jobs where Seq in (select value from json_each(?)) and Status in ('queued', 'retrying') and DispatchedAt is not null

-- next: the ids that claim_next takes: due and not dispatched.
-- Params: 1 lane  2 limit.  Returns seq, status as written.
select Seq, Status from Jobs where Priority = ? and DispatchedAt is null and RunAt <= {now} order by RunAt, Seq limit ?

-- leases_unknown: leases that a replica took without learning of it, as when its connection broke.
-- Params: 1 replica  2 tokens it knows (array).  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where ReplicaId = ? and Token not in (select value from json_each(?))

-- release_before: the jobs that release gives back.
-- Params: 1 held (JSON array of [token, seq]).  Returns seq, lane.
select j.Seq, j.Priority from json_each(?) as h cross join Jobs as j on j.Seq = json_extract(h.value, '$[1]')
where j.Status = 'running' and j.LeaseToken = json_extract(h.value, '$[0]')

-- release: gives running jobs back, their attempt not consumed, as dispatched by this replica; their ids are then pushed by the caller.
-- Params: 1 replica  2 seqs (array).
update Jobs set Status = case when RetryCount > 0 then 'retrying' else 'queued' end, LeasedBy = null, StartedAt = null,
                DispatchedAt = {now}, DispatchedBy = ?, UpdatedAt = {now}
where Seq in (select value from json_each(?))

-- complete_before: the jobs that complete marks: running, each under its own token.
-- Params: 1 held (JSON array of [token, seq]).  Returns seq, token.
select j.Seq, j.LeaseToken from json_each(?) as h cross join Jobs as j on j.Seq = json_extract(h.value, '$[1]')
where j.Status = 'running' and j.LeaseToken = json_extract(h.value, '$[0]')

-- complete: marks jobs as completed.
-- Params: 1 seqs (array).
update Jobs set Status = 'completed', FinishedAt = {now}, UpdatedAt = {now} where Seq in (select value from json_each(?))

-- fail_before: the jobs that fail retries or buries: running, each under its own token.
-- Params: 1 failures (JSON array of {seq, token, bury, error, delay_ms})  2 horizon_ms (null: dispatch none).
-- Returns seq, token, due_in_ms (null: not dispatched).
select j.Seq, j.LeaseToken, case when json_extract(f.value, '$.bury') or json_extract(f.value, '$.delay_ms') > coalesce(?, -1) then null else json_extract(f.value, '$.delay_ms') end
from json_each(?) as f cross join Jobs as j on j.Seq = json_extract(f.value, '$.seq')
where j.Status = 'running' and j.LeaseToken = json_extract(f.value, '$.token')

-- fail: retries or buries jobs. A retry due within the horizon counts as dispatched by this replica.
-- Params: 1 failures (JSON array of {seq, token, bury, error, delay_ms})  2 replica  3 horizon_ms (null: dispatch none).
update Jobs set
    Status = case when f.bury then 'failed' else 'retrying' end,
    RetryCount = case when f.bury then RetryCount else RetryCount + 1 end,
    LastError = f.error, UpdatedAt = {now},
    FinishedAt = case when f.bury then {now} end,
    RunAt = case when f.bury then RunAt else {now} + f.delay_ms end,
    DispatchedAt = case when f.bury then DispatchedAt when f.delay_ms <= f.horizon_ms then {now} + f.delay_ms end,
    DispatchedBy = case when f.bury then DispatchedBy when f.delay_ms <= f.horizon_ms then f.replica end
from (select json_extract(value, '$.seq') as seq, json_extract(value, '$.token') as token, json_extract(value, '$.bury') as bury,
             json_extract(value, '$.error') as error, json_extract(value, '$.delay_ms') as delay_ms, d.replica, d.horizon_ms
      from json_each(?) cross join (select ? as replica, ? as horizon_ms) as d) as f
where Jobs.Seq = f.seq and Jobs.LeaseToken = f.token and Jobs.Status = 'running'

-- outcomes_stored: what the table has of the outcomes of attempts, their own or that of an end of their lease.
-- Params: 1 held (JSON array of [token, seq])  2 replica.
-- Returns seq, token, is_completed (0, 1), error (null: no failure), due_in_ms (null: not for this replica to push).
select j.Seq, json_extract(h.value, '$[0]'), j.Status = 'completed' and j.LeaseToken = json_extract(h.value, '$[0]'), a.Error,
    case when j.Status = 'retrying' and j.LeaseToken = a.Token and j.DispatchedBy = d.replica and j.DispatchedAt is not null then max(j.RunAt - {now}, 0) end
from json_each(?) as h cross join (select ? as replica) as d cross join Jobs as j on j.Seq = json_extract(h.value, '$[1]')
left join JobAttempts as a on a.Seq = j.Seq and a.Token = json_extract(h.value, '$[0]')

-- attempts_add: keeps the errors of failed attempts.
-- Params: 1 failures (JSON array of {seq, token, attempt, error}).
insert or ignore into JobAttempts (Seq, Token, Attempt, StartedAt, Error)
select j.Seq, json_extract(f.value, '$.token'), json_extract(f.value, '$.attempt'), j.StartedAt, json_extract(f.value, '$.error')
from json_each(?) as f cross join Jobs as j on j.Seq = json_extract(f.value, '$.seq')

-- dead_letters_add: one dead letter for each job just buried.
-- Params: 1 letters (JSON array of {seq, id, reason}).
insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason)
select json_extract(l.value, '$.id'), j.Id, j.Type, coalesce(j.Payload, 'null'), j.Priority, json_extract(l.value, '$.reason')
from json_each(?) as l cross join Jobs as j on j.Seq = json_extract(l.value, '$.seq')

-- stats_add: counts outcomes by the minute.
-- Params: 1 counts (JSON array of {lane, type, completed, retried, failed, duration_ms}, each lane and type once)  2 replica.
insert into JobStats (Minute, Lane, Type, ReplicaId, Completed, Retried, Failed, DurationMs)
select {now} / 60000 * 60000, json_extract(c.value, '$.lane'), json_extract(c.value, '$.type'), r.id, json_extract(c.value, '$.completed'),
       json_extract(c.value, '$.retried'), json_extract(c.value, '$.failed'), json_extract(c.value, '$.duration_ms')
from json_each(?) as c cross join (select ? as id) as r where true
on conflict (Minute, Lane, Type, ReplicaId) do update set
    Completed = Completed + excluded.Completed, Retried = Retried + excluded.Retried,
    Failed = Failed + excluded.Failed, DurationMs = DurationMs + excluded.DurationMs

-- leases_renew_before: the leases that leases_renew renews.
-- Params: 1 tokens (array).  Returns token.
select Token from Leases where Token in (select value from json_each(?))

-- leases_renew: renews leases from now. One that another replica has ended is not there any more.
-- Params: 1 lease_ms  2 tokens (array).
update Leases set LeaseUntil = {now} + ? where Token in (select value from json_each(?))

-- leases_end: removes leases whose jobs all have their outcome.
-- Params: 1 tokens (array).
delete from Leases where Token in (select value from json_each(?))

-- not_held: which of the given jobs are no longer running under the given tokens: cancelled, or lost.
-- Params: 1 held (JSON array of [token, seq]).  Returns seq, token.
select json_extract(h.value, '$[1]'), json_extract(h.value, '$[0]') from json_each(?) as h
left join Jobs as j on j.Seq = json_extract(h.value, '$[1]') and j.LeaseToken = json_extract(h.value, '$[0]') and j.Status = 'running'
where j.Seq is null

-- leases_expired: the leases that ran out.
-- Params: 1 limit.  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where LeaseUntil < {now} order by LeaseUntil limit ?

-- lease_expired: one lease if it ran out.
-- Params: 1 token.  Returns token, seqs (JSON array), replica.
select Token, Seqs, ReplicaId from Leases where Token = ? and LeaseUntil < {now}

-- expired_jobs: the jobs still running under a lease.
-- Params: 1 token  2 seqs (array).  Returns seq, type, lane, retry_count, max_retries, id, unique_key.
select Seq, Type, Priority, RetryCount, MaxRetries, Id, UniqueKey from Jobs
where LeaseToken = ? and Seq in (select value from json_each(?)) and Status = 'running'

-- beat: shows this replica as alive.
-- Params: 1 replica  2 name  3 holds.
insert into Replicas (Id, Name, Holds) values (?, ?, ?)
on conflict (Id) do update set SeenAt = {now}, Holds = excluded.Holds

-- beat_after: what a beat finds.
-- Params: 1 dead_after_ms.  Returns the number of expired leases, the number of dead replicas.
select (select count(*) from Leases where LeaseUntil < {now}), (select count(*) from Replicas where SeenAt < {now} - ?)

-- replicas_bury: forgets those of the given replicas that are dead, once their ids are recalled.
-- Params: 1 replicas (array)  2 dead_after_ms.
delete from Replicas where Id in (select value from json_each(?)) and SeenAt < {now} - ?

-- replica_gone: forgets one replica.
-- Params: 1 replica.
delete from Replicas where Id = ?

-- job: one job.
-- Params: 1 id.  Returns the columns of a job.
select Seq, Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt, RunAt, StartedAt, FinishedAt, TimeoutMs, UniqueKey, LastError
from Jobs where Id = ?

-- jobs: a page of jobs in the order of arrival. A filter that is null lets all through.
-- Params: 1 after (seq)  2 status  3 type  4 lane  5 since_ms  6 limit.  Returns the columns of a job.
select j.Seq, j.Id, j.Type, j.Payload, j.Priority, j.MaxRetries, j.RetryCount, j.Status, j.CreatedAt, j.UpdatedAt, j.RunAt, j.StartedAt, j.FinishedAt,
       j.TimeoutMs, j.UniqueKey, j.LastError
from Jobs as j
where j.Seq > ? and lower(j.Status) = coalesce(?, lower(j.Status)) and j.Type = coalesce(?, j.Type)
  and lower(j.Priority) = coalesce(?, lower(j.Priority)) and j.CreatedAt >= coalesce(?, j.CreatedAt)
order by j.Seq limit ?

-- jobs_by_id: jobs by their public ids, in any order.
-- Params: 1 ids (JSON array, up to 1,000).  Returns the columns of a job.
select Seq, Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt, RunAt, StartedAt, FinishedAt, TimeoutMs, UniqueKey, LastError
from Jobs where Id in (select value from json_each(?))

-- attempts: the failed attempts of a job, oldest first.
-- Params: 1 id.  Returns attempt, token, started_ms, finished_ms, error.
select a.Attempt, a.Token, a.StartedAt, a.FinishedAt, a.Error
from JobAttempts as a join Jobs as j on j.Seq = a.Seq where j.Id = ? order by a.Token

-- dead_letters: a page of dead letters in the order in which they came.
-- Params: 1 after (seq)  2 type  3 lane  4 since_ms  5 limit.  Returns seq, id, original_job_id, type, payload, lane, reason, failed_ms.
select d.Seq, d.Id, d.OriginalJobId, d.Type, d.Payload, d.Priority, d.Reason, d.FailedAt
from FailedJobs as d
where d.Seq > ? and d.Type = coalesce(?, d.Type) and lower(d.Priority) = coalesce(?, lower(d.Priority))
  and d.FailedAt >= coalesce(?, d.FailedAt)
order by d.Seq limit ?

-- cancel_before: the job that cancel withdraws.
-- Params: 1 id.  Returns seq.
select Seq from Jobs where Id = ? and lower(Status) in ('queued', 'retrying', 'running')

-- cancel: withdraws a job that is not done. A running one keeps running until its replica notices; its outcome is refused.
-- DispatchedAt is set so that the row leaves the index of what waits.
-- Params: 1 id.
update Jobs set Status = 'cancelled', FinishedAt = {now}, UpdatedAt = {now}, DispatchedAt = coalesce(DispatchedAt, {now})
where Id = ? and lower(Status) in ('queued', 'retrying', 'running')

-- dead_letter_find: a dead letter by its own id or its job's.
-- Params: 1 id  2 id.  Returns id, job id, the job's unique key.
select d.Id, d.OriginalJobId, (select UniqueKey from Jobs where Jobs.Id = d.OriginalJobId)
from FailedJobs as d where d.Id = ? or d.OriginalJobId = ? order by d.Seq desc limit 1

-- revive_before: the job that revive queues anew.
-- Params: 1 job id.  Returns seq.
select Seq from Jobs where Id = ? and Status = 'failed' and lower(trim(Priority)) in ('high', 'medium', 'low')

-- revive: queues a failed job anew, as dispatched now by this replica; its id is then pushed by the caller. Not one of no known lane, for
-- a lost id is found by its lane.
-- Params: 1 replica  2 job id.
update Jobs set Status = 'queued', RetryCount = 0, RunAt = {now}, StartedAt = null, FinishedAt = null, DispatchedAt = {now}, DispatchedBy = ?,
                LeaseToken = null, LeasedBy = null, UpdatedAt = {now}, Priority = lower(trim(Priority))
where Id = ? and Status = 'failed' and lower(trim(Priority)) in ('high', 'medium', 'low')

-- revive_lost: queues a job anew from its dead letter alone, for a job whose row is gone.
-- Params: 1 replica  2 dead letter id.
insert into Jobs (Id, Type, Payload, Priority, DispatchedAt, DispatchedBy)
select d.OriginalJobId, d.Type, d.Payload, lower(d.Priority), {now}, r.id from (select ? as id) as r cross join FailedJobs as d
where d.Id = ? and lower(d.Priority) in ('high', 'medium', 'low') and not exists (select 1 from Jobs where Jobs.Id = d.OriginalJobId)

-- revive_lost_after: the job just queued anew.
-- Params: 1 dead letter id.  Returns seq.
select j.Seq from FailedJobs as d join Jobs as j on j.Id = d.OriginalJobId where d.Id = ? and changes() = 1

-- dead_letter_delete: removes a dead letter.
-- Params: 1 id.
delete from FailedJobs where Id = ?

-- prune_scan: a page of the oldest jobs, to find those to delete.
-- Params: 1 kept_ms  2 kept_ms  3 after (seq)  4 limit.  Returns seq, 1 if it ended long enough ago, 1 if it was stored long enough ago.
select Seq, Status in ('completed', 'cancelled') and FinishedAt < {now} - ?, CreatedAt < {now} - ? from Jobs where Seq > ? order by Seq limit ?

-- prune_jobs: deletes ended jobs.
-- Params: 1 seqs (array).
delete from Jobs where Seq in (select value from json_each(?)) and Status in ('completed', 'cancelled')

-- prune_attempts: deletes the attempts of jobs that are gone.
-- Params: 1 seqs (array).
delete from JobAttempts where Seq in (select value from json_each(?))

-- idempotency_old: how many results of old calls there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
select count(*) from (select 1 from IdempotencyKeys where CreatedAt < {now} - ? limit ?)

-- prune_idempotency: forgets the results of the oldest calls.
-- Params: 1 kept_ms  2 limit.
delete from IdempotencyKeys where IdempotencyKey in (
    select IdempotencyKey from IdempotencyKeys where CreatedAt < {now} - ? order by CreatedAt limit ?)

-- stats_old: how many old rows of statistics there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
select count(*) from (select 1 from JobStats where Minute < {now} - ? limit ?)

-- prune_stats: forgets the oldest statistics.
-- Params: 1 kept_ms  2 limit.
delete from JobStats where (Minute, Lane, Type, ReplicaId) in (
    select Minute, Lane, Type, ReplicaId from JobStats where Minute < {now} - ? order by Minute limit ?)
