-- The statements of Trilane on SQL Server, each named like the method of the store that runs it; see sql/README.md.
--
-- One statement here is a batch: it declares its parameters, in their order, and returns at most one result. Several changes that belong
-- together stand in BEGIN TRANSACTION … COMMIT TRANSACTION, which nests in a transaction of the store. XACT_ABORT undoes all of it on any error.
--
-- The hints, each for one reason:
--   OPTION (LOOP JOIN, FORCE ORDER)  behind FROM OPENJSON … INNER JOIN Jobs: each id given is sought by the clustered key, whatever the statistics
--                                    say. They are always stale in a queue, and one plan that reads the whole table locks all of it.
--   OPTION (LOOP JOIN)               where the table is not in FROM: the same, as soon as it has more rows than a page or two.
--   FORCESEEK                        as above, for the table's side: no scan, even when the plan is made while the table is empty.
--   ROWLOCK                          no page locks: READPAST passes over rows only.
--   UPDLOCK                          a row picked is still free when it is changed; with RCSI the read would otherwise see an old version.
--   READPAST                         rows in the hands of another session are passed over, not waited for.
--   READPAST, READCOMMITTEDLOCK      the same without keeping a lock (RCSI refuses READPAST alone): thousands of kept locks would escalate.
--   XLOCK, READPAST                  the same, and rows that another session has only read and keeps locked are passed over as well.
--   UPDLOCK, HOLDLOCK                on a key that is not there: no other session inserts it before this one has.
-- Free text does not stand in the rows of a batch but beside them, in @texts, all texts one behind the other; a row holds [begin, length].
-- Under a binary collation SUBSTRING counts the same everywhere, where _SC collations would count an emoji once.
-- A database that takes no notice of lock hints stays correct: every change checks again what its row must be.
--
-- A change that returns rows (OUTPUT) does not name its table in FROM, but joins it in WHERE: then what WHERE asks is asked again of a row
-- that was waited for, also where the server would otherwise read a version from before the wait. Any other change names it in FROM, last and
-- without an alias. No other forms are understood alike everywhere.

-- define later: DATEADD(millisecond, @ms % 1000, DATEADD(second, @ms / 1000 % 86400, DATEADD(day, @ms / 86400000, @now)))
-- define ago: DATEADD(millisecond, -(@ms % 1000), DATEADD(second, -(@ms / 1000 % 86400), DATEADD(day, -(@ms / 86400000), @now)))
-- define seek: OPTION (LOOP JOIN, FORCE ORDER)
-- define loop: OPTION (LOOP JOIN)
-- define free: DispatchedAt IS NULL AND (Priority < N'high' OR Priority > N'high' AND Priority < N'low' OR Priority > N'low' AND Priority < N'medium' OR Priority > N'medium')
-- define texts: @texts COLLATE Latin1_General_100_BIN2
-- define lane: LOWER(LTRIM(RTRIM(Priority)) COLLATE Latin1_General_100_BIN2)
-- define status: LOWER(Status COLLATE Latin1_General_100_BIN2)
-- define job: j.Seq, j.Id, j.Type, j.Payload, j.Priority, j.MaxRetries, j.RetryCount, j.Status, DATEDIFF_BIG(millisecond, '19700101', j.CreatedAt), DATEDIFF_BIG(millisecond, '19700101', j.UpdatedAt), DATEDIFF_BIG(millisecond, '19700101', j.RunAt), DATEDIFF_BIG(millisecond, '19700101', j.StartedAt), DATEDIFF_BIG(millisecond, '19700101', j.FinishedAt), j.TimeoutMs, j.UniqueKey, j.LastError

-- session_a: no row counts, which would be results of their own; any error undoes its transaction; no lock is waited for longer than six
-- seconds (deadlocks are looked for every five); text comes whole (FreeTDS asks for 64 KB unless told).
SET NOCOUNT ON; SET XACT_ABORT ON; SET LOCK_TIMEOUT 6000; SET TEXTSIZE 2147483647; SET TRANSACTION ISOLATION LEVEL READ COMMITTED

-- ping: answers.
SELECT 1

-- probe: gives back its parameter, and how long it is for SUBSTRING.
-- Params: 1 text.  Returns text, length.
DECLARE @texts nvarchar(max) = ?;
SELECT @texts, LEN({texts})

-- now: the database's clock.
-- Returns ms since 1970.
SELECT DATEDIFF_BIG(millisecond, '19700101', SYSUTCDATETIME())

-- has_snapshots: whether readers see the last committed version of a row, and do not wait for writers.
-- Returns 1 or 0.
SELECT CASE WHEN is_read_committed_snapshot_on = 1 THEN 1 ELSE 0 END FROM sys.databases WHERE database_id = DB_ID()

-- schema_exists: whether there is a table of migrations.
-- Returns 1 or no row.
SELECT 1 FROM sys.tables WHERE object_id = OBJECT_ID(N'SchemaVersion', N'U')

-- schema_create: the table of migrations; as in migration 1, which may also be run by hand.
IF OBJECT_ID(N'SchemaVersion', N'U') IS NULL
    CREATE TABLE SchemaVersion (
        Version   int           NOT NULL,
        Name      nvarchar(100) NOT NULL,
        AppliedAt datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
        CONSTRAINT SchemaVersion_Version PRIMARY KEY CLUSTERED (Version)
    )

-- schema_version: the last migration that ran.
-- Returns version, or null.
SELECT MAX(Version) FROM SchemaVersion

-- schema_add: notes a migration that ran, if it did not note itself.
-- Params: 1 version  2 name.
DECLARE @version int = ?;
INSERT INTO SchemaVersion (Version, Name) SELECT @version, ? WHERE NOT EXISTS (SELECT 1 FROM SchemaVersion WHERE Version = @version)

-- migrate_lock: waits until no other replica migrates, until the end of the transaction. Error 51222 is Trilane's own, for a lock not had in time.
DECLARE @locked int;
EXEC @locked = sp_getapplock @Resource = N'trilane.migrate', @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = 10000;
IF @locked < 0
    THROW 51222, N'another replica is migrating this database', 1

-- keys_take: takes unique keys for jobs about to be stored. A key held by another job is left to it. Waits for other sessions' keys.
-- Params: 1 keys (JSON array of {unique_key, id}, sorted by key, so that two sessions never wait for each other)  2 texts.
DECLARE @keys nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
INSERT INTO JobKeys (UniqueKey, KeyBytes, JobId)
SELECT k.unique_key, DATALENGTH(k.unique_key), g.id
FROM OPENJSON(@keys) WITH (key_begin int '$.unique_key[0]', key_length int '$.unique_key[1]', id uniqueidentifier '$.id') AS g
CROSS APPLY (SELECT CAST(SUBSTRING({texts}, g.key_begin, g.key_length) AS nvarchar(400)) AS unique_key) AS k
WHERE NOT EXISTS (
    SELECT 1 FROM JobKeys AS h WITH (UPDLOCK, HOLDLOCK, FORCESEEK)
    WHERE h.UniqueKey = k.unique_key AND h.KeyBytes = DATALENGTH(k.unique_key))
OPTION (LOOP JOIN)

-- keys_held: who holds unique keys.
-- Params: 1 keys (JSON array of {unique_key, id})  2 texts.  Returns unique_key, job id.
DECLARE @keys nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
SELECT h.UniqueKey, h.JobId
FROM OPENJSON(@keys) WITH (key_begin int '$.unique_key[0]', key_length int '$.unique_key[1]') AS g
CROSS APPLY (SELECT CAST(SUBSTRING({texts}, g.key_begin, g.key_length) AS nvarchar(400)) AS unique_key) AS k
INNER JOIN JobKeys AS h WITH (FORCESEEK) ON h.UniqueKey = k.unique_key AND h.KeyBytes = DATALENGTH(k.unique_key)
{seek}

-- keys_free: gives up the unique keys of jobs that ended.
-- Params: 1 keys (JSON array of {unique_key, id})  2 texts.
DECLARE @keys nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
DELETE FROM JobKeys
FROM OPENJSON(@keys) WITH (key_begin int '$.unique_key[0]', key_length int '$.unique_key[1]', id uniqueidentifier '$.id') AS g
CROSS APPLY (SELECT CAST(SUBSTRING({texts}, g.key_begin, g.key_length) AS nvarchar(400)) AS unique_key) AS k
INNER JOIN JobKeys WITH (ROWLOCK, FORCESEEK) ON JobKeys.UniqueKey = k.unique_key AND JobKeys.KeyBytes = DATALENGTH(k.unique_key)
WHERE JobKeys.JobId = g.id
{seek}

-- keys_free_of: gives up the unique keys of jobs that ended, as their rows name them.
-- Params: 1 seqs (array).
DECLARE @seqs nvarchar(max) = ?;
DELETE FROM JobKeys
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = g.seq
INNER JOIN JobKeys WITH (ROWLOCK, FORCESEEK) ON JobKeys.UniqueKey = j.UniqueKey AND JobKeys.KeyBytes = DATALENGTH(j.UniqueKey)
WHERE JobKeys.JobId = j.Id
{seek}

-- submit: stores jobs. Those due within their horizon count as dispatched at the moment they are due; their id is then pushed by the caller.
-- ORDER BY makes the identity follow the order of the jobs. The numbers are read by the index on Id, within the transaction: where the
-- reading fails, nothing is stored.
-- Params: 1 jobs (JSON array, up to 1,000, of {n, id, type, payload, lane, max_retries, at_ms, delay_ms, horizon_ms (null: not dispatched),
--         timeout_ms, unique_key})  2 texts  3 replica.
-- Returns seq, id, created_ms, run_ms, due_in_ms (null: not dispatched).
DECLARE @jobs nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
DECLARE @replica bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
BEGIN TRANSACTION;
INSERT INTO Jobs (Id, Type, Payload, Priority, MaxRetries, CreatedAt, UpdatedAt, RunAt, TimeoutMs, UniqueKey, DispatchedAt, DispatchedBy)
SELECT g.id, g.type, SUBSTRING({texts}, g.payload_begin, g.payload_length), g.lane, g.max_retries, @now, @now, r.run_at, g.timeout_ms,
       SUBSTRING({texts}, g.key_begin, g.key_length),
       CASE WHEN r.run_at <= r.horizon THEN CASE WHEN r.run_at > @now THEN r.run_at ELSE @now END END,
       CASE WHEN r.run_at <= r.horizon THEN @replica END
FROM OPENJSON(@jobs) WITH (
    n int '$.n', id uniqueidentifier '$.id', type nvarchar(100) '$.type', payload_begin int '$.payload[0]', payload_length int '$.payload[1]',
    lane nvarchar(10) '$.lane', max_retries int '$.max_retries', at_ms bigint '$.at_ms', delay_ms bigint '$.delay_ms',
    horizon_ms int '$.horizon_ms', timeout_ms int '$.timeout_ms', key_begin int '$.unique_key[0]', key_length int '$.unique_key[1]') AS g
CROSS APPLY (SELECT CASE WHEN g.at_ms IS NULL THEN @now ELSE CAST('19700101' AS datetime2(3)) END AS origin, COALESCE(g.at_ms, g.delay_ms, 0) AS ms) AS t
CROSS APPLY (SELECT DATEADD(millisecond, t.ms % 1000, DATEADD(second, t.ms / 1000 % 86400, DATEADD(day, t.ms / 86400000, t.origin))) AS run_at,
                    DATEADD(millisecond, g.horizon_ms, @now) AS horizon) AS r
ORDER BY g.n;
SELECT j.Seq, j.Id, DATEDIFF_BIG(millisecond, '19700101', j.CreatedAt), DATEDIFF_BIG(millisecond, '19700101', j.RunAt),
       DATEDIFF_BIG(millisecond, @now, j.DispatchedAt)
FROM OPENJSON(@jobs) WITH (id uniqueidentifier '$.id') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Id = g.id
{seek};
COMMIT TRANSACTION

-- idempotency_add: remembers the results of a call. Fails if its key is there.
-- Params: 1 key  2 hash (hex)  3 results (JSON).
DECLARE @key nvarchar(400) = ?;
INSERT INTO IdempotencyKeys (IdempotencyKey, KeyBytes, RequestHash, Results) VALUES (@key, DATALENGTH(@key), ?, ?)

-- idempotency_find: the results of an earlier call.
-- Params: 1 key.  Returns hash, results.
DECLARE @key nvarchar(400) = ?;
SELECT RequestHash, Results FROM IdempotencyKeys WHERE IdempotencyKey = @key AND KeyBytes = DATALENGTH(@key)

-- regularise: puts the lanes that plain SQL wrote in other letters into lower case. The ranges are all but the three names, as the
-- collation sees them: a seek. Where it takes HIGH for high there is nothing to find; then dispatch does it. In steps, so that no lock escalates.
-- READPAST: rows of a client that has yet to commit, or of another replica that does the same.
UPDATE TOP (1000) Jobs SET Priority = {lane}, UpdatedAt = SYSUTCDATETIME()
FROM Jobs WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK)
WHERE {free} AND {lane} IN (N'high', N'medium', N'low')

-- odd_lanes: jobs of no known lane. READPAST as in regularise: a client that has yet to commit holds up no tick.
-- Params: 1 limit.  Returns seq, lane.
SELECT TOP (?) Seq, Priority FROM Jobs WITH (READPAST, READCOMMITTEDLOCK, FORCESEEK) WHERE {free}

-- bury_odd: gives up jobs that cannot be dispatched, or read; a running one only under the given token, or if it was never claimed.
-- Params: 1 error  2 seqs (array)  3 token (-1: none).  Returns seq.
DECLARE @error nvarchar(max) = ?;
DECLARE @seqs nvarchar(max) = ?;
DECLARE @token bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs WITH (ROWLOCK) SET Status = N'failed', LastError = @error, DispatchedAt = @now, FinishedAt = @now, UpdatedAt = @now
OUTPUT inserted.Seq
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
WHERE Jobs.Seq = g.seq AND Jobs.Status NOT IN (N'completed', N'failed', N'cancelled')
  AND (Jobs.Status <> N'running' OR ISNULL(Jobs.LeaseToken, -1) = @token)
{loop}

-- set_aside: takes rows that were given up, or have ended already, off the list of what waits.
-- Params: 1 seqs (array).
DECLARE @seqs nvarchar(max) = ?;
UPDATE Jobs SET DispatchedAt = SYSUTCDATETIME()
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs WITH (ROWLOCK, FORCESEEK) ON Jobs.Seq = g.seq
WHERE Jobs.DispatchedAt IS NULL
{seek}

-- due: locks what is due within the horizon and not dispatched, each lane in the order of RunAt, then arrival. What another replica dispatches is left out.
-- Params: 1 lane  2 horizon_ms  3 limit.  Returns seq, status as written.
DECLARE @lane nvarchar(10) = ?;
DECLARE @ms bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @horizon datetime2(3) = {later};
SELECT TOP (?) Seq, Status FROM Jobs WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK)
WHERE Priority = @lane AND DispatchedAt IS NULL AND RunAt <= @horizon
ORDER BY RunAt, Seq

-- next_due: when the first job of a lane that was not dispatched is due.
-- Params: 1 lane.  Returns due_in_ms, or no row.
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT TOP (1) CASE WHEN RunAt > @now THEN DATEDIFF_BIG(millisecond, @now, RunAt) ELSE 0 END
FROM Jobs WITH (READPAST, READCOMMITTEDLOCK, FORCESEEK)
WHERE Priority = ? AND DispatchedAt IS NULL ORDER BY RunAt, Seq

-- dispatch: marks jobs as dispatched at the moment they are due.
-- Params: 1 replica  2 seqs (array).  Returns seq, due_in_ms.
DECLARE @replica bigint = ?;
DECLARE @seqs nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs WITH (ROWLOCK) SET DispatchedAt = CASE WHEN RunAt > @now THEN RunAt ELSE @now END, DispatchedBy = @replica,
                               Priority = {lane}, Status = {status}, UpdatedAt = @now
OUTPUT inserted.Seq, DATEDIFF_BIG(millisecond, @now, inserted.DispatchedAt)
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
WHERE Jobs.Seq = g.seq AND Jobs.DispatchedAt IS NULL
{loop}

-- starved: which of the given jobs wait for a worker, and which of those have been due for longer than a time.
-- Params: 1 time_ms  2 seqs (array).  Returns seq, 1 or 0.
DECLARE @ms bigint = ?;
DECLARE @seqs nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @due_before datetime2(3) = {ago};
SELECT j.Seq, CASE WHEN j.RunAt < @due_before THEN 1 ELSE 0 END
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = g.seq
WHERE j.Status IN (N'queued', N'retrying') AND j.DispatchedAt IS NOT NULL
{seek}

-- promote: marks jobs as dispatched now, whose ids leave their lane for the end of a higher one.
-- Params: 1 replica  2 seqs (array).
DECLARE @replica bigint = ?;
DECLARE @seqs nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs SET DispatchedAt = @now, DispatchedBy = @replica, UpdatedAt = @now
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs WITH (ROWLOCK, FORCESEEK) ON Jobs.Seq = g.seq
WHERE Jobs.Status IN (N'queued', N'retrying') AND Jobs.DispatchedAt IS NOT NULL
{seek}

-- sweep: where to look for lost ids in each lane: what was dispatched after one moment, up to another: a grace before now, and before the id at the
-- lane's head was (-1: the lane is empty). Null: the head tells nothing, for no row knows it, it is not dispatched, or it was released, and came to
-- the head from there (a lease, but nobody's).
-- Moments are milliseconds since 1970.
-- Params: 1 look_back_ms  2 grace_ms  3 head of high  4 of medium  5 of low.  Returns lane, after, until.
DECLARE @look_back bigint = ?;
DECLARE @grace bigint = ?;
DECLARE @high bigint = ?;
DECLARE @medium bigint = ?;
DECLARE @low bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT l.Lane, DATEDIFF_BIG(millisecond, '19700101', l.SweptTo) - @look_back,
       DATEDIFF_BIG(millisecond, '19700101', CASE WHEN g.head = -1 THEN @now ELSE (
           SELECT CASE WHEN j.DispatchedAt > @now THEN @now ELSE j.DispatchedAt END FROM Jobs AS j WITH (FORCESEEK)
           WHERE j.Seq = g.head AND NOT (j.LeaseToken IS NOT NULL AND j.LeasedBy IS NULL)) END) - @grace - 1
FROM (SELECT N'high' AS lane, @high AS head UNION ALL SELECT N'medium', @medium UNION ALL SELECT N'low', @low) AS g
INNER JOIN Lanes AS l ON l.Lane = g.lane

-- dispatched: a page of what was dispatched to a lane, of which those still waiting for a worker are returned. It ends with the row behind a number
-- of others, and all of its moment; the index gives the order. Where nothing waits, one row tells the end alone.
-- READPAST only finds where the page ends. READCOMMITTEDLOCK waits for a claim under way, which may yet be undone: a row passed over there would be
-- behind SweptTo for good. Not locked beyond the read: recall looks again.
-- Params: 1 lane  2 after  3 until  4 others (moments).  Returns end (moment), seq, replica, dispatched (moment).
DECLARE @lane nvarchar(10) = ?;
DECLARE @now datetime2(3) = '19700101';
DECLARE @ms bigint = ?;
DECLARE @after datetime2(3) = {later};
SET @ms = ?;
DECLARE @until datetime2(3) = {later};
DECLARE @others bigint = ?;
DECLARE @last datetime2(3);
DECLARE @found bigint;
SELECT @last = MAX(p.DispatchedAt), @found = COUNT_BIG(*)
FROM (SELECT TOP (@others + 1) DispatchedAt FROM Jobs WITH (READPAST, READCOMMITTEDLOCK, FORCESEEK)
      WHERE Priority = @lane AND DispatchedAt > @after AND DispatchedAt <= @until ORDER BY DispatchedAt) AS p;
IF @found <= @others
    SET @last = @until;
SELECT DATEDIFF_BIG(millisecond, '19700101', @last), j.Seq, j.DispatchedBy, DATEDIFF_BIG(millisecond, '19700101', j.DispatchedAt)
FROM (SELECT 1 AS one) AS o
LEFT JOIN Jobs AS j WITH (READCOMMITTEDLOCK, FORCESEEK)
    ON j.Priority = @lane AND j.DispatchedAt > @after AND j.DispatchedAt <= @last AND j.Status IN (N'queued', N'retrying')
{seek}

-- replicas: which replicas are known, and which of them are dead.
-- Params: 1 dead_after_ms.  Returns now (moment), replica (null: none is known), 1 if dead.
DECLARE @ms bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @dead_before datetime2(3) = {ago};
SELECT DATEDIFF_BIG(millisecond, '19700101', @now), r.Id, CASE WHEN r.SeenAt < @dead_before THEN 1 ELSE 0 END
FROM (SELECT 1 AS one) AS o LEFT JOIN Replicas AS r ON o.one = 1

-- recall: gives ids back to dispatch.
-- Params: 1 seqs (array).
DECLARE @seqs nvarchar(max) = ?;
UPDATE Jobs SET DispatchedAt = NULL, DispatchedBy = NULL, UpdatedAt = SYSUTCDATETIME()
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs WITH (ROWLOCK, FORCESEEK) ON Jobs.Seq = g.seq
WHERE Jobs.Status IN (N'queued', N'retrying') AND Jobs.DispatchedAt IS NOT NULL
{seek}

-- swept: notes that nothing is lost in a lane up to a moment, but for transactions still open. Never in the future, where the clock was set back.
-- Params: 1 to (moment)  2 lane.
DECLARE @now datetime2(3) = '19700101';
DECLARE @ms bigint = ?;
DECLARE @to datetime2(3) = {later};
SET @now = SYSUTCDATETIME();
UPDATE Lanes SET SweptTo = CASE WHEN SweptTo > @now OR @to > @now THEN @now ELSE @to END
WHERE Lane = ? AND (SweptTo < @to OR SweptTo > @now)

-- claim: takes the queued jobs among the given for one replica, under one new lease; where there are none, without a lease. A job taken by another
-- meanwhile is left out.
-- READPAST: a row that another session holds is being claimed there; waiting for it would only lose a moment later. What was taken is what
-- bears the token, which is new.
-- Params: 1 replica  2 lease_ms  3 seqs (JSON array, up to 1,000)  4 early_ms.
-- Returns token, seq, id, type, payload, lane, retry_count, max_retries, timeout_ms, unique_key, created_ms.
DECLARE @replica bigint = ?;
DECLARE @ms bigint = ?;
DECLARE @seqs nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @lease_until datetime2(3) = {later};
SET @ms = ?;
DECLARE @due datetime2(3) = {later};
DECLARE @token bigint;
BEGIN TRANSACTION;
INSERT INTO Leases (ReplicaId, LeaseUntil, Seqs) VALUES (@replica, @lease_until, @seqs);
SET @token = SCOPE_IDENTITY();
UPDATE Jobs SET Status = N'running', StartedAt = @now, UpdatedAt = @now, LeaseToken = @token, LeasedBy = @replica,
                DispatchedAt = ISNULL(DispatchedAt, @now)
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK) ON Jobs.Seq = g.seq
WHERE Jobs.Status IN (N'queued', N'retrying') AND Jobs.RunAt <= @due
{seek};
IF @@ROWCOUNT = 0
    DELETE FROM Leases WHERE Token = @token;
SELECT j.LeaseToken, j.Seq, j.Id, j.Type, j.Payload, j.Priority, j.RetryCount, j.MaxRetries, j.TimeoutMs, j.UniqueKey,
       DATEDIFF_BIG(millisecond, '19700101', j.CreatedAt)
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = g.seq
WHERE j.LeaseToken = @token
{seek};
COMMIT TRANSACTION

-- unclaimed: which of the given jobs, left out by a claim, wait for a worker all the same. NOLOCK: it is to see the rows that another session holds,
-- and not to wait for them; who acts on it claims anew.
-- Params: 1 seqs (array).  Returns seq.
DECLARE @seqs nvarchar(max) = ?;
SELECT j.Seq
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (NOLOCK, FORCESEEK) ON j.Seq = g.seq
WHERE j.Status IN (N'queued', N'retrying') AND j.DispatchedAt IS NOT NULL
{seek}

-- held_elsewhere: locks the rows of the given jobs, without waiting, but for those that another session holds.
-- READPAST leaves those out, NOLOCK sees them all the same. XLOCK: where another only keeps what it has read (REPEATABLE READ, SERIALIZABLE), an
-- update lock would be had, and the change behind it would wait.
-- Params: 1 seqs (array).  Returns seq of those.
DECLARE @seqs nvarchar(max) = ?;
SELECT j.Seq
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (NOLOCK, FORCESEEK) ON j.Seq = g.seq
WHERE NOT EXISTS (SELECT 1 FROM Jobs AS f WITH (XLOCK, READPAST, READCOMMITTEDLOCK, ROWLOCK, FORCESEEK) WHERE f.Seq = j.Seq)
{seek}

-- next: the ids that claim_next takes: due and not dispatched.
-- Params: 1 lane  2 limit.  Returns seq, status as written.
DECLARE @lane nvarchar(10) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT TOP (?) Seq, Status FROM Jobs WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK)
WHERE Priority = @lane AND DispatchedAt IS NULL AND RunAt <= @now
ORDER BY RunAt, Seq

-- leases_unknown: leases that a replica took without learning of it, as when its connection broke.
-- Params: 1 replica  2 tokens it knows (array).  Returns token, seqs (JSON array), replica.
SELECT Token, Seqs, ReplicaId FROM Leases
WHERE ReplicaId = ? AND Token NOT IN (SELECT k.token FROM OPENJSON(?) WITH (token bigint '$') AS k)

-- release: gives running jobs back, their attempt not consumed, as dispatched by this replica; their ids are then pushed by the caller.
-- Params: 1 held (JSON array of [token, seq])  2 replica.  Returns seq, lane.
DECLARE @held nvarchar(max) = ?;
DECLARE @replica bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs WITH (ROWLOCK) SET Status = CASE WHEN RetryCount > 0 THEN N'retrying' ELSE N'queued' END, LeasedBy = NULL, StartedAt = NULL,
                               DispatchedAt = @now, DispatchedBy = @replica, UpdatedAt = @now
OUTPUT inserted.Seq, inserted.Priority
FROM OPENJSON(@held) WITH (token bigint '$[0]', seq bigint '$[1]') AS h
WHERE Jobs.Seq = h.seq AND Jobs.Status = N'running' AND Jobs.LeaseToken = h.token
{loop}

-- complete: marks running jobs as completed, each under its own token.
-- Params: 1 held (JSON array of [token, seq]).  Returns seq, token.
DECLARE @held nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs WITH (ROWLOCK) SET Status = N'completed', FinishedAt = @now, UpdatedAt = @now
OUTPUT inserted.Seq, inserted.LeaseToken
FROM OPENJSON(@held) WITH (token bigint '$[0]', seq bigint '$[1]') AS h
WHERE Jobs.Seq = h.seq AND Jobs.Status = N'running' AND Jobs.LeaseToken = h.token
{loop}

-- fail: retries or buries running jobs, each under its own token. A retry due within the horizon counts as dispatched by this replica.
-- Params: 1 failures (JSON array of {seq, token, bury, error, delay_ms})  2 texts  3 replica  4 horizon_ms (null: dispatch none).
-- Returns seq, token, due_in_ms (null: not dispatched).
DECLARE @failures nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
DECLARE @replica bigint = ?;
DECLARE @horizon_ms bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs WITH (ROWLOCK) SET
    Status = CASE WHEN f.bury = 1 THEN N'failed' ELSE N'retrying' END,
    RetryCount = CASE WHEN f.bury = 1 THEN Jobs.RetryCount ELSE Jobs.RetryCount + 1 END,
    LastError = SUBSTRING({texts}, f.error_begin, f.error_length), UpdatedAt = @now,
    FinishedAt = CASE WHEN f.bury = 1 THEN @now END,
    RunAt = CASE WHEN f.bury = 1 THEN Jobs.RunAt ELSE r.run_at END,
    DispatchedAt = CASE WHEN f.bury = 1 THEN Jobs.DispatchedAt WHEN r.due_in_ms IS NOT NULL THEN r.run_at END,
    DispatchedBy = CASE WHEN f.bury = 1 THEN Jobs.DispatchedBy WHEN r.due_in_ms IS NOT NULL THEN @replica END
OUTPUT inserted.Seq, inserted.LeaseToken, r.due_in_ms
FROM OPENJSON(@failures) WITH (
    seq bigint '$.seq', token bigint '$.token', bury bit '$.bury', error_begin int '$.error[0]', error_length int '$.error[1]',
    delay_ms bigint '$.delay_ms') AS f
CROSS APPLY (SELECT CASE WHEN f.bury = 0 AND f.delay_ms <= @horizon_ms THEN f.delay_ms END AS due_in_ms,
                    DATEADD(millisecond, f.delay_ms % 1000, DATEADD(second, f.delay_ms / 1000 % 86400, DATEADD(day, f.delay_ms / 86400000, @now))) AS run_at) AS r
WHERE Jobs.Seq = f.seq AND Jobs.Status = N'running' AND Jobs.LeaseToken = f.token
{loop}

-- outcomes_stored: what the table has of the outcomes of attempts, their own or that of an end of their lease.
-- Params: 1 held (JSON array of [token, seq])  2 replica.
-- Returns seq, token, is_completed (0, 1), error (null: no failure), due_in_ms (null: not for this replica to push).
DECLARE @held nvarchar(max) = ?;
DECLARE @replica bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT j.Seq, h.token, CASE WHEN j.Status = N'completed' AND j.LeaseToken = h.token THEN 1 ELSE 0 END, a.Error,
    CASE WHEN j.Status = N'retrying' AND j.LeaseToken = h.token AND j.DispatchedBy = @replica AND j.DispatchedAt IS NOT NULL
        THEN CASE WHEN j.RunAt > @now THEN DATEDIFF_BIG(millisecond, @now, j.RunAt) ELSE 0 END END
FROM OPENJSON(@held) WITH (token bigint '$[0]', seq bigint '$[1]') AS h
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = h.seq
LEFT JOIN JobAttempts AS a WITH (FORCESEEK) ON a.Seq = h.seq AND a.Token = h.token
{seek}

-- attempts_add: keeps the errors of failed attempts.
-- Params: 1 failures (JSON array of {seq, token, attempt, error})  2 texts.
DECLARE @failures nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
INSERT INTO JobAttempts (Seq, Token, Attempt, StartedAt, Error)
SELECT j.Seq, f.token, f.attempt, j.StartedAt, SUBSTRING({texts}, f.error_begin, f.error_length)
FROM OPENJSON(@failures) WITH (
    seq bigint '$.seq', token bigint '$.token', attempt int '$.attempt', error_begin int '$.error[0]', error_length int '$.error[1]') AS f
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = f.seq
WHERE NOT EXISTS (SELECT 1 FROM JobAttempts AS a WITH (FORCESEEK) WHERE a.Seq = f.seq AND a.Token = f.token)
{seek}

-- dead_letters_add: one dead letter for each job just buried.
-- Params: 1 letters (JSON array of {seq, id, reason})  2 texts.
DECLARE @letters nvarchar(max) = ?;
DECLARE @texts nvarchar(max) = ?;
INSERT INTO FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason)
SELECT l.id, j.Id, j.Type, COALESCE(j.Payload, N'null'), j.Priority, SUBSTRING({texts}, l.reason_begin, l.reason_length)
FROM OPENJSON(@letters) WITH (seq bigint '$.seq', id uniqueidentifier '$.id', reason_begin int '$.reason[0]', reason_length int '$.reason[1]') AS l
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = l.seq
{seek}

-- stats_add: counts outcomes by the minute. Rows that are not there are made first, empty; then all are added to.
-- Params: 1 counts (JSON array of {lane, type, completed, retried, failed, duration_ms}, each lane and type once)  2 replica.
DECLARE @counts nvarchar(max) = ?;
DECLARE @replica bigint = ?;
DECLARE @minute datetime2(0) = DATEADD(minute, DATEDIFF(minute, CAST('20000101' AS datetime2(0)), SYSUTCDATETIME()), CAST('20000101' AS datetime2(0)));
-- Summed up, for types that plain SQL wrote may differ in nothing but blanks at their end, which make one key here.
DECLARE @given TABLE (
    Lane nvarchar(10) COLLATE Latin1_General_100_BIN2 NOT NULL, Type nvarchar(100) COLLATE Latin1_General_100_BIN2 NOT NULL,
    Completed bigint NOT NULL, Retried bigint NOT NULL, Failed bigint NOT NULL, DurationMs bigint NOT NULL, PRIMARY KEY (Lane, Type));
INSERT INTO @given (Lane, Type, Completed, Retried, Failed, DurationMs)
SELECT c.lane, MIN(c.type), SUM(c.completed), SUM(c.retried), SUM(c.failed), SUM(c.duration_ms)
FROM OPENJSON(@counts) WITH (lane nvarchar(10) '$.lane', type nvarchar(100) '$.type', completed bigint '$.completed', retried bigint '$.retried',
    failed bigint '$.failed', duration_ms bigint '$.duration_ms') AS c
GROUP BY c.lane, c.type COLLATE Latin1_General_100_BIN2;
BEGIN TRANSACTION;
INSERT INTO JobStats (Minute, Lane, Type, ReplicaId)
SELECT @minute, g.Lane, g.Type, @replica FROM @given AS g
WHERE NOT EXISTS (
    SELECT 1 FROM JobStats AS s WITH (UPDLOCK, HOLDLOCK, FORCESEEK)
    WHERE s.Minute = @minute AND s.Lane = g.Lane AND s.Type = g.Type AND s.ReplicaId = @replica)
OPTION (LOOP JOIN);
UPDATE JobStats SET
    Completed = JobStats.Completed + g.Completed, Retried = JobStats.Retried + g.Retried,
    Failed = JobStats.Failed + g.Failed, DurationMs = JobStats.DurationMs + g.DurationMs
FROM @given AS g
INNER JOIN JobStats WITH (ROWLOCK, FORCESEEK)
    ON JobStats.Minute = @minute AND JobStats.Lane = g.Lane AND JobStats.Type = g.Type AND JobStats.ReplicaId = @replica
{seek};
COMMIT TRANSACTION

-- leases_renew: renews leases from now. One that another replica has ended is not there any more.
-- Params: 1 lease_ms  2 tokens (array).  Returns token.
DECLARE @ms bigint = ?;
DECLARE @tokens nvarchar(max) = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @lease_until datetime2(3) = {later};
UPDATE Leases WITH (ROWLOCK) SET LeaseUntil = @lease_until
OUTPUT inserted.Token
FROM OPENJSON(@tokens) WITH (token bigint '$') AS h
WHERE Leases.Token = h.token
{loop}

-- leases_end: removes leases whose jobs all have their outcome.
-- Params: 1 tokens (array).
DECLARE @tokens nvarchar(max) = ?;
DELETE FROM Leases
FROM OPENJSON(@tokens) WITH (token bigint '$') AS h
INNER JOIN Leases WITH (ROWLOCK, FORCESEEK) ON Leases.Token = h.token
{seek}

-- not_held: which of the given jobs are no longer running under the given tokens: cancelled, or lost.
-- Params: 1 held (JSON array of [token, seq]).  Returns seq, token.
DECLARE @held nvarchar(max) = ?;
SELECT h.seq, h.token
FROM OPENJSON(@held) WITH (token bigint '$[0]', seq bigint '$[1]') AS h
LEFT JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = h.seq AND j.LeaseToken = h.token AND j.Status = N'running'
WHERE j.Seq IS NULL
{seek}

-- leases_expired: locks the leases that ran out. One that another replica ends is left out. The time has the type of the column: one of another
-- precision may rule out the seek that FORCESEEK asks for, and then there is no plan (error 8622).
-- Params: 1 limit.  Returns token, seqs (JSON array), replica.
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT TOP (?) Token, Seqs, ReplicaId FROM Leases WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK)
WHERE LeaseUntil < @now ORDER BY LeaseUntil

-- lease_expired: locks one lease if it ran out. One that another replica ends is left out.
-- Params: 1 token.  Returns token, seqs (JSON array), replica.
DECLARE @now datetime2(3) = SYSUTCDATETIME();
SELECT Token, Seqs, ReplicaId FROM Leases WITH (UPDLOCK, READPAST, ROWLOCK, FORCESEEK) WHERE Token = ? AND LeaseUntil < @now

-- expired_jobs: the jobs still running under a lease.
-- Params: 1 token  2 seqs (array).  Returns seq, type, lane, retry_count, max_retries, id, unique_key.
DECLARE @token bigint = ?;
DECLARE @seqs nvarchar(max) = ?;
SELECT j.Seq, j.Type, j.Priority, j.RetryCount, j.MaxRetries, j.Id, j.UniqueKey
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Seq = g.seq
WHERE j.LeaseToken = @token AND j.Status = N'running'
{seek}

-- beat: shows this replica as alive. Only the replica itself writes its row.
-- Params: 1 replica  2 name  3 holds  4 dead_after_ms.  Returns the number of expired leases, the number of dead replicas.
DECLARE @replica bigint = ?;
DECLARE @name nvarchar(200) = ?;
DECLARE @holds int = ?;
DECLARE @ms bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @dead_before datetime2(3) = {ago};
UPDATE Replicas SET SeenAt = @now, Holds = @holds WHERE Id = @replica;
IF @@ROWCOUNT = 0
    INSERT INTO Replicas (Id, Name, StartedAt, SeenAt, Holds) VALUES (@replica, @name, @now, @now, @holds);
SELECT (SELECT COUNT(*) FROM Leases WHERE LeaseUntil < @now), (SELECT COUNT(*) FROM Replicas WHERE SeenAt < @dead_before)

-- replicas_bury: forgets those of the given replicas that are dead, once their ids are recalled.
-- Params: 1 replicas (array)  2 dead_after_ms.
DECLARE @replicas nvarchar(max) = ?;
DECLARE @ms bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DELETE FROM Replicas WHERE Id IN (SELECT seq FROM OPENJSON(@replicas) WITH (seq bigint '$')) AND SeenAt < {ago}

-- replica_gone: forgets one replica.
-- Params: 1 replica.
DELETE FROM Replicas WHERE Id = ?

-- job: one job.
-- Params: 1 id.  Returns the columns of a job.
DECLARE @id uniqueidentifier = ?;
SELECT {job} FROM Jobs AS j WITH (FORCESEEK) WHERE j.Id = @id

-- jobs: a page of jobs in the order of arrival. A filter that is null lets all through.
-- Params: 1 after (seq)  2 status  3 type  4 lane  5 since_ms  6 limit.  Returns the columns of a job.
DECLARE @after bigint = ?;
DECLARE @status nvarchar(50) = ?;
DECLARE @type nvarchar(100) = ?;
DECLARE @lane nvarchar(10) = ?;
DECLARE @since_ms bigint = ?;
SELECT TOP (?) {job} FROM Jobs AS j
WHERE j.Seq > @after AND (@status IS NULL OR {status} = @status) AND (@type IS NULL OR j.Type = @type)
  AND (@lane IS NULL OR {lane} = @lane) AND (@since_ms IS NULL OR DATEDIFF_BIG(millisecond, '19700101', j.CreatedAt) >= @since_ms)
ORDER BY j.Seq

-- jobs_by_id: jobs by their public ids, in any order.
-- Params: 1 ids (JSON array, up to 1,000).  Returns the columns of a job.
DECLARE @ids nvarchar(max) = ?;
SELECT {job}
FROM OPENJSON(@ids) WITH (id uniqueidentifier '$') AS g
INNER JOIN Jobs AS j WITH (FORCESEEK) ON j.Id = g.id
{seek}

-- attempts: the failed attempts of a job, oldest first.
-- Params: 1 id.  Returns attempt, token, started_ms, finished_ms, error.
DECLARE @id uniqueidentifier = ?;
SELECT a.Attempt, a.Token, DATEDIFF_BIG(millisecond, '19700101', a.StartedAt), DATEDIFF_BIG(millisecond, '19700101', a.FinishedAt), a.Error
FROM JobAttempts AS a WHERE a.Seq = (SELECT j.Seq FROM Jobs AS j WHERE j.Id = @id)
ORDER BY a.Token

-- dead_letters: a page of dead letters in the order in which they came.
-- Params: 1 after (seq)  2 type  3 lane  4 since_ms  5 limit.  Returns seq, id, original_job_id, type, payload, lane, reason, failed_ms.
DECLARE @after bigint = ?;
DECLARE @type nvarchar(100) = ?;
DECLARE @lane nvarchar(10) = ?;
DECLARE @since_ms bigint = ?;
SELECT TOP (?) Seq, Id, OriginalJobId, Type, Payload, Priority, Reason, DATEDIFF_BIG(millisecond, '19700101', FailedAt)
FROM FailedJobs
WHERE Seq > @after AND (@type IS NULL OR Type = @type) AND (@lane IS NULL OR {lane} = @lane)
  AND (@since_ms IS NULL OR DATEDIFF_BIG(millisecond, '19700101', FailedAt) >= @since_ms)
ORDER BY Seq

-- cancel: withdraws a job that is not done. A running one keeps running until its replica notices; its outcome is refused.
-- DispatchedAt is set so that the row is not found among what waits. Its number first: a plan made while the table is small would
-- look for the id in all rows, and wait for those that others hold.
-- Params: 1 id.  Returns seq.
DECLARE @id uniqueidentifier = ?;
DECLARE @seq bigint = (SELECT j.Seq FROM Jobs AS j WITH (FORCESEEK) WHERE j.Id = @id);
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs SET Status = N'cancelled', FinishedAt = @now, UpdatedAt = @now, DispatchedAt = ISNULL(DispatchedAt, @now)
OUTPUT inserted.Seq
WHERE Seq = @seq AND {status} IN (N'queued', N'retrying', N'running')

-- dead_letter_find: locks a dead letter by its own id or its job's. Two seeks find its number, for OR would read the whole table.
-- Params: 1 id  2 id.  Returns id, job id, the job's unique key.
DECLARE @seq bigint = (SELECT MAX(s.Seq) FROM (
    SELECT Seq FROM FailedJobs WHERE Id = ? UNION ALL SELECT Seq FROM FailedJobs WHERE OriginalJobId = ?) AS s);
SELECT d.Id, d.OriginalJobId, (SELECT j.UniqueKey FROM Jobs AS j WITH (FORCESEEK) WHERE j.Id = d.OriginalJobId)
FROM FailedJobs AS d WITH (UPDLOCK, ROWLOCK) WHERE d.Seq = @seq

-- revive: queues a failed job anew, as dispatched now by this replica; its id is then pushed by the caller. Not one of no known lane, for
-- a lost id is found by its lane. Its number first, as in cancel.
-- Params: 1 replica  2 job id.  Returns seq.
DECLARE @replica bigint = ?;
DECLARE @id uniqueidentifier = ?;
DECLARE @seq bigint = (SELECT j.Seq FROM Jobs AS j WITH (FORCESEEK) WHERE j.Id = @id);
DECLARE @now datetime2(3) = SYSUTCDATETIME();
UPDATE Jobs SET Status = N'queued', RetryCount = 0, RunAt = @now, StartedAt = NULL, FinishedAt = NULL, DispatchedAt = @now,
                DispatchedBy = @replica, LeaseToken = NULL, LeasedBy = NULL, UpdatedAt = @now, Priority = {lane}
OUTPUT inserted.Seq
WHERE Seq = @seq AND Status = N'failed' AND {lane} IN (N'high', N'medium', N'low')

-- revive_lost: queues a job anew from its dead letter alone, for a job whose row is gone.
-- Params: 1 replica  2 dead letter id.  Returns seq.
DECLARE @replica bigint = ?;
DECLARE @id uniqueidentifier = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
INSERT INTO Jobs (Id, Type, Payload, Priority, CreatedAt, UpdatedAt, RunAt, DispatchedAt, DispatchedBy)
OUTPUT inserted.Seq
SELECT OriginalJobId, Type, Payload, {lane}, @now, @now, @now, @now, @replica FROM FailedJobs
WHERE Id = @id AND {lane} IN (N'high', N'medium', N'low') AND NOT EXISTS (SELECT 1 FROM Jobs WHERE Jobs.Id = FailedJobs.OriginalJobId)

-- dead_letter_delete: removes a dead letter.
-- Params: 1 id.
DECLARE @id uniqueidentifier = ?;
DELETE FROM FailedJobs WHERE Id = @id

-- prune_scan: a page of the oldest jobs, to find those to delete.
-- Params: 1 kept_ms  2 kept_ms  3 after (seq)  4 limit.  Returns seq, 1 if it ended long enough ago, 1 if it was stored long enough ago.
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @ms bigint = ?;
DECLARE @ended_before datetime2(3) = {ago};
SET @ms = ?;
DECLARE @stored_before datetime2(3) = {ago};
DECLARE @after bigint = ?;
SELECT TOP (?) Seq, CASE WHEN Status IN (N'completed', N'cancelled') AND FinishedAt < @ended_before THEN 1 ELSE 0 END,
       CASE WHEN CreatedAt < @stored_before THEN 1 ELSE 0 END
FROM Jobs WHERE Seq > @after ORDER BY Seq

-- prune_jobs: deletes ended jobs. In a deadlock, housekeeping is what gives way (until the end of the batch).
-- Params: 1 seqs (array).
DECLARE @seqs nvarchar(max) = ?;
SET DEADLOCK_PRIORITY LOW;
DELETE FROM Jobs
FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
INNER JOIN Jobs WITH (ROWLOCK, FORCESEEK) ON Jobs.Seq = g.seq
WHERE Jobs.Status IN (N'completed', N'cancelled')
{seek}

-- prune_attempts: deletes the attempts of jobs that are gone. In steps, so that no lock escalates.
-- Params: 1 seqs (array).
DECLARE @seqs nvarchar(max) = ?;
SET DEADLOCK_PRIORITY LOW;
WHILE 1 = 1
BEGIN
    DELETE TOP (1000) FROM JobAttempts
    FROM OPENJSON(@seqs) WITH (seq bigint '$') AS g
    INNER JOIN JobAttempts WITH (ROWLOCK, FORCESEEK) ON JobAttempts.Seq = g.seq
    {seek};
    IF @@ROWCOUNT < 1000 BREAK;
END

-- idempotency_old: how many results of old calls there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
DECLARE @ms bigint = ?;
DECLARE @limit bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @stored_before datetime2(3) = {ago};
SELECT COUNT_BIG(*) FROM (SELECT TOP (@limit) CreatedAt FROM IdempotencyKeys WITH (READPAST, READCOMMITTEDLOCK) WHERE CreatedAt < @stored_before) AS o

-- prune_idempotency: forgets the results of old calls.
-- Params: 1 kept_ms  2 limit.
DECLARE @ms bigint = ?;
DECLARE @limit bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @stored_before datetime2(3) = {ago};
SET DEADLOCK_PRIORITY LOW;
DELETE TOP (@limit) FROM IdempotencyKeys WITH (UPDLOCK, READPAST, ROWLOCK) WHERE CreatedAt < @stored_before

-- stats_old: how many old rows of statistics there are, up to a limit.
-- Params: 1 kept_ms  2 limit.  Returns their number.
DECLARE @ms bigint = ?;
DECLARE @limit bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @counted_before datetime2(3) = {ago};
SELECT COUNT_BIG(*) FROM (SELECT TOP (@limit) Minute FROM JobStats WITH (READPAST, READCOMMITTEDLOCK) WHERE Minute < @counted_before) AS o

-- prune_stats: forgets old statistics.
-- Params: 1 kept_ms  2 limit.
DECLARE @ms bigint = ?;
DECLARE @limit bigint = ?;
DECLARE @now datetime2(3) = SYSUTCDATETIME();
DECLARE @counted_before datetime2(3) = {ago};
SET DEADLOCK_PRIORITY LOW;
DELETE TOP (@limit) FROM JobStats WITH (UPDLOCK, READPAST, ROWLOCK) WHERE Minute < @counted_before
