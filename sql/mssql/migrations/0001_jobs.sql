-- Trilane's tables on SQL Server 2016 and later, and Azure SQL. What each column means: sql/README.md.
--
-- Run by Trilane, or by hand in the database it is to use (sqlcmd -d jobs -i 0001_jobs.sql, or SSMS): one transaction, that does
-- nothing where it ran before. It is a single batch, so that an error stops all of it; nothing in it depends on QUOTED_IDENTIFIER,
-- which sqlcmd and SQL Server Agent turn off: no filtered index, indexed view or index on a computed column, on which their plain
-- INSERTs would fail with error 1934.
--
-- A database of the original system is taken over: every row of its Jobs and FailedJobs is copied, in the order of time, and keeps
-- its id, its times (read as UTC) and its counts. What had not ended is queued again. Permissions granted on the two tables are granted
-- again; triggers and foreign keys on them stop the migration or stay behind, for Trilane has none. A table with columns that Trilane
-- does not know is not dropped but kept, as JobsBeforeTrilane or FailedJobsBeforeTrilane.
--
-- All times are UTC. Constraints but for the primary keys have no name of their own, so that none can be taken.

SET NOCOUNT ON;
SET XACT_ABORT ON;
GO

BEGIN TRANSACTION;

DECLARE @locked int;
EXEC @locked = sp_getapplock @Resource = N'trilane.migrate', @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = 10000;
IF @locked < 0
    THROW 51222, N'another replica is migrating this database', 1;

IF OBJECT_ID(N'SchemaVersion', N'U') IS NULL
    CREATE TABLE SchemaVersion (
        Version   int           NOT NULL,
        Name      nvarchar(100) NOT NULL,
        AppliedAt datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
        CONSTRAINT SchemaVersion_Version PRIMARY KEY CLUSTERED (Version)
    );

IF EXISTS (SELECT 1 FROM SchemaVersion WHERE Version >= 1)
BEGIN
    COMMIT TRANSACTION;
    RETURN;
END;

-- The original's tables step aside. Their statements are texts, compiled when they run: as the batch begins, Jobs may have other columns.
DECLARE @grants nvarchar(max) = N'';

IF COL_LENGTH(N'Jobs', N'Seq') IS NOT NULL
    THROW 51000, N'there is a table Jobs with a column Seq, but SchemaVersion does not know of it: restore the rows of SchemaVersion', 1;
IF OBJECT_SCHEMA_NAME(OBJECT_ID(N'Jobs', N'U')) <> SCHEMA_NAME()
    THROW 51000, N'the table Jobs is not in the default schema of this login, where Trilane would make its own: change one of the two', 1;

SELECT @grants = @grants + CASE p.state WHEN 'W' THEN N'GRANT' ELSE p.state_desc COLLATE DATABASE_DEFAULT END
    + N' ' + p.permission_name COLLATE DATABASE_DEFAULT
    + CASE WHEN p.major_id = OBJECT_ID(N'Jobs', N'U') THEN N' ON Jobs TO ' ELSE N' ON FailedJobs TO ' END
    + QUOTENAME(u.name) COLLATE DATABASE_DEFAULT
    + CASE p.state WHEN 'W' THEN N' WITH GRANT OPTION; ' ELSE N'; ' END
FROM sys.database_permissions AS p
INNER JOIN sys.database_principals AS u ON u.principal_id = p.grantee_principal_id
-- Nobody may grant to himself; who can migrate does not need it.
WHERE p.class = 1 AND p.minor_id = 0 AND p.grantee_principal_id <> USER_ID()
    AND p.major_id IN (OBJECT_ID(N'Jobs', N'U'), OBJECT_ID(N'FailedJobs', N'U'));

IF OBJECT_ID(N'Jobs', N'U') IS NOT NULL
    EXEC sp_rename N'Jobs', N'JobsBeforeTrilane', N'OBJECT';
IF OBJECT_ID(N'FailedJobs', N'U') IS NOT NULL
    EXEC sp_rename N'FailedJobs', N'FailedJobsBeforeTrilane', N'OBJECT';

CREATE TABLE Jobs (
    Seq          bigint           IDENTITY(1, 1) NOT NULL,
    Id           uniqueidentifier NOT NULL DEFAULT NEWID(),
    Type         nvarchar(100)    NOT NULL,
    Payload      nvarchar(max)    NOT NULL,
    -- Type, Priority and Status have the collation of the database, as before: clients compare them with columns of their own.
    Priority     nvarchar(10)     NOT NULL DEFAULT N'medium',
    MaxRetries   int              NOT NULL DEFAULT 3,
    RetryCount   int              NOT NULL DEFAULT 0,
    Status       nvarchar(50)     NOT NULL DEFAULT N'queued',
    CreatedAt    datetime2(3)     NOT NULL DEFAULT SYSUTCDATETIME(),
    UpdatedAt    datetime2(3)     NOT NULL DEFAULT SYSUTCDATETIME(),
    RunAt        datetime2(3)     NOT NULL DEFAULT SYSUTCDATETIME(),
    StartedAt    datetime2(3)     NULL,
    FinishedAt   datetime2(3)     NULL,
    DispatchedAt datetime2(3)     NULL,
    DispatchedBy bigint           NULL,
    LeaseToken   bigint           NULL,
    LeasedBy     bigint           NULL,
    TimeoutMs    int              NULL,
    UniqueKey    nvarchar(400)    COLLATE Latin1_General_100_BIN2 NULL,
    LastError    nvarchar(max)    NULL,
    -- Rows are claimed and finished by this key, and added at its end.
    CONSTRAINT Jobs_Seq PRIMARY KEY CLUSTERED (Seq)
);

CREATE TABLE JobAttempts (
    Seq        bigint        NOT NULL,
    Token      bigint        NOT NULL,
    Attempt    int           NOT NULL,
    StartedAt  datetime2(3)  NULL,
    FinishedAt datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
    Error      nvarchar(max) NOT NULL,
    CONSTRAINT JobAttempts_Seq_Token PRIMARY KEY CLUSTERED (Seq, Token)
);

CREATE TABLE FailedJobs (
    Seq           bigint           IDENTITY(1, 1) NOT NULL,
    Id            uniqueidentifier NOT NULL DEFAULT NEWID(),
    OriginalJobId uniqueidentifier NOT NULL,
    Type          nvarchar(100)    NOT NULL,
    Payload       nvarchar(max)    NOT NULL,
    Priority      nvarchar(10)     NOT NULL,
    Reason        nvarchar(max)    NOT NULL,
    FailedAt      datetime2(3)     NOT NULL DEFAULT SYSUTCDATETIME(),
    CONSTRAINT FailedJobs_Seq PRIMARY KEY CLUSTERED (Seq)
);

-- One row for each claimed batch: the lease under which this replica runs the jobs of Seqs (a JSON array) until LeaseUntil.
CREATE TABLE Leases (
    Token      bigint        IDENTITY(1, 1) NOT NULL,
    ReplicaId  bigint        NOT NULL,
    LeaseUntil datetime2(3)  NOT NULL,
    Seqs       nvarchar(max) NOT NULL,
    CONSTRAINT Leases_Token PRIMARY KEY CLUSTERED (Token)
);

-- The unique keys of live jobs. A binary collation tells a from A and e from é; that SQL Server takes keys for equal that differ only
-- in blanks at their end is what KeyBytes (DATALENGTH of the key) is for.
CREATE TABLE JobKeys (
    UniqueKey nvarchar(400)    COLLATE Latin1_General_100_BIN2 NOT NULL,
    KeyBytes  int              NOT NULL,
    JobId     uniqueidentifier NOT NULL,
    CONSTRAINT JobKeys_UniqueKey PRIMARY KEY CLUSTERED (UniqueKey, KeyBytes)
);

CREATE TABLE IdempotencyKeys (
    IdempotencyKey nvarchar(400) COLLATE Latin1_General_100_BIN2 NOT NULL,
    KeyBytes       int           NOT NULL,
    RequestHash    char(64)      NOT NULL,
    Results        nvarchar(max) NOT NULL,
    CreatedAt      datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
    CONSTRAINT IdempotencyKeys_IdempotencyKey PRIMARY KEY CLUSTERED (IdempotencyKey, KeyBytes)
);

CREATE TABLE Replicas (
    Id        bigint        NOT NULL,
    Name      nvarchar(200) NOT NULL,
    StartedAt datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
    SeenAt    datetime2(3)  NOT NULL DEFAULT SYSUTCDATETIME(),
    Holds     int           NOT NULL DEFAULT 0,
    CONSTRAINT Replicas_Id PRIMARY KEY CLUSTERED (Id)
);

-- Everything dispatched to a lane before SweptTo has been claimed, or was given back to dispatch. At first there is nothing of the kind.
CREATE TABLE Lanes (
    Lane    nvarchar(10) NOT NULL,
    SweptTo datetime2(3) NOT NULL DEFAULT SYSUTCDATETIME(),
    CONSTRAINT Lanes_Lane PRIMARY KEY CLUSTERED (Lane)
);

INSERT INTO Lanes (Lane) VALUES (N'high'), (N'medium'), (N'low');

-- Types that differ only in letters' case are two types, whatever the database's collation says.
CREATE TABLE JobStats (
    Minute     datetime2(0)  NOT NULL,
    Lane       nvarchar(10)  COLLATE Latin1_General_100_BIN2 NOT NULL,
    Type       nvarchar(100) COLLATE Latin1_General_100_BIN2 NOT NULL,
    ReplicaId  bigint        NOT NULL,
    Completed  bigint        NOT NULL DEFAULT 0,
    Retried    bigint        NOT NULL DEFAULT 0,
    Failed     bigint        NOT NULL DEFAULT 0,
    DurationMs bigint        NOT NULL DEFAULT 0,
    CONSTRAINT JobStats_Minute PRIMARY KEY CLUSTERED (Minute, Lane, Type, ReplicaId)
);

-- The original's rows. Nothing is known of its columns but their names: a time that cannot be read becomes the time of the migration,
-- a null what the column has by default.
IF OBJECT_ID(N'JobsBeforeTrilane', N'U') IS NOT NULL
    EXEC (N'
        INSERT INTO Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt, RunAt, FinishedAt, DispatchedAt)
        SELECT COALESCE(TRY_CONVERT(uniqueidentifier, b.Id), NEWID()),
               COALESCE(LEFT(CONVERT(nvarchar(max), b.Type), 100), N''''), COALESCE(CONVERT(nvarchar(max), b.Payload), N''null''),
               COALESCE(LEFT(CONVERT(nvarchar(max), b.Priority), 10), N''medium''),
               COALESCE(TRY_CONVERT(int, b.MaxRetries), 3), COALESCE(TRY_CONVERT(int, b.RetryCount), 0),
               COALESCE(s.ended, N''queued''), t.created_at, t.updated_at, t.created_at,
               CASE WHEN s.ended IS NOT NULL THEN t.updated_at END,
               -- What has ended counts as dispatched, so that it is not found among what waits.
               CASE WHEN s.ended IS NOT NULL THEN t.updated_at END
        FROM JobsBeforeTrilane AS b
        CROSS APPLY (SELECT COALESCE(TRY_CONVERT(datetime2(3), b.CreatedAt), TRY_CONVERT(datetime2(3), b.UpdatedAt), SYSUTCDATETIME()) AS created_at,
                            COALESCE(TRY_CONVERT(datetime2(3), b.UpdatedAt), TRY_CONVERT(datetime2(3), b.CreatedAt), SYSUTCDATETIME()) AS updated_at) AS t
        CROSS APPLY (SELECT LOWER(LTRIM(RTRIM(CONVERT(nvarchar(50), b.Status))) COLLATE Latin1_General_100_BIN2) AS status) AS w
        CROSS APPLY (SELECT CASE
            WHEN w.status IN (N''completed'', N''complete'', N''succeeded'', N''success'', N''done'', N''finished'') THEN N''completed''
            WHEN w.status IN (N''failed'', N''dead'', N''deadletter'', N''dead_letter'', N''dead-letter'') THEN N''failed''
            WHEN w.status IN (N''cancelled'', N''canceled'', N''aborted'', N''deleted'') THEN N''cancelled'' END AS ended) AS s
        ORDER BY t.created_at');

IF OBJECT_ID(N'FailedJobsBeforeTrilane', N'U') IS NOT NULL
    EXEC (N'
        INSERT INTO FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt)
        SELECT COALESCE(TRY_CONVERT(uniqueidentifier, b.Id), NEWID()), COALESCE(TRY_CONVERT(uniqueidentifier, b.OriginalJobId), NEWID()),
               COALESCE(LEFT(CONVERT(nvarchar(max), b.Type), 100), N''''), COALESCE(CONVERT(nvarchar(max), b.Payload), N''null''),
               COALESCE(LEFT(CONVERT(nvarchar(max), b.Priority), 10), N''medium''), COALESCE(CONVERT(nvarchar(max), b.Reason), N''''), t.failed_at
        FROM FailedJobsBeforeTrilane AS b
        CROSS APPLY (SELECT COALESCE(TRY_CONVERT(datetime2(3), b.FailedAt), SYSUTCDATETIME()) AS failed_at) AS t
        ORDER BY t.failed_at');

-- FailedJobs first: it may refer to Jobs.
IF OBJECT_ID(N'FailedJobsBeforeTrilane', N'U') IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM sys.columns WHERE object_id = OBJECT_ID(N'FailedJobsBeforeTrilane', N'U')
        AND name NOT IN (N'Id', N'OriginalJobId', N'Type', N'Payload', N'Priority', N'Reason', N'FailedAt'))
    DROP TABLE FailedJobsBeforeTrilane;
IF OBJECT_ID(N'JobsBeforeTrilane', N'U') IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM sys.columns WHERE object_id = OBJECT_ID(N'JobsBeforeTrilane', N'U')
        AND name NOT IN (N'Id', N'Type', N'Payload', N'Priority', N'MaxRetries', N'RetryCount', N'Status', N'CreatedAt', N'UpdatedAt'))
    DROP TABLE JobsBeforeTrilane;

CREATE UNIQUE NONCLUSTERED INDEX Jobs_Id ON Jobs (Id);

-- One index for both questions that other databases answer with two partial ones:
--   what waits in a lane:        Priority = x and DispatchedAt is null, in the order of RunAt, then Seq (the clustered key, which every
--                                nonclustered index ends with). Null is a value like others here, and the lowest: a seek, no sort.
--   what was dispatched, when:   Priority = x and DispatchedAt between two times: a seek as well.
-- Neither claim nor outcome changes one of its columns (a claim sets DispatchedAt only where it is null, after an id came twice), so they
-- write the clustered row and nothing else. An index that leads with Status would be written by both. Dispatching moves an entry; a
-- job that is submitted over HTTP is stored as dispatched, at the end of its lane's part, and never moves.
CREATE NONCLUSTERED INDEX Jobs_Dispatch ON Jobs (Priority, DispatchedAt, RunAt);

CREATE UNIQUE NONCLUSTERED INDEX FailedJobs_Id ON FailedJobs (Id);
CREATE NONCLUSTERED INDEX FailedJobs_OriginalJobId ON FailedJobs (OriginalJobId);
-- Which are old enough to be forgotten.
CREATE NONCLUSTERED INDEX IdempotencyKeys_CreatedAt ON IdempotencyKeys (CreatedAt);
CREATE NONCLUSTERED INDEX Leases_LeaseUntil ON Leases (LeaseUntil);

EXEC (@grants);

INSERT INTO SchemaVersion (Version, Name) VALUES (1, N'jobs');

COMMIT TRANSACTION;
GO
