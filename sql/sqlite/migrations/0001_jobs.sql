-- Trilane's tables on SQLite. Times are whole milliseconds since 1970-01-01T00:00:00Z. What each column means: sql/README.md.

create table Jobs (
    Seq          integer primary key autoincrement,
    Id           text    not null collate nocase default (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a' || substr(hex(randomblob(2)), 2)
              || '-' || hex(randomblob(6))))
        check (length(Id) = 36 and Id not glob '*[^0-9A-Fa-f-]*'),
    Type         text    not null,
    Payload      text    not null,
    Priority     text    not null default 'medium',
    MaxRetries   integer not null default 3,
    RetryCount   integer not null default 0,
    Status       text    not null default 'queued',
    CreatedAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    UpdatedAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    RunAt        integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    StartedAt    integer,
    FinishedAt   integer,
    DispatchedAt integer,
    DispatchedBy integer,
    LeaseToken   integer,
    LeasedBy     integer,
    TimeoutMs    integer,
    UniqueKey    text,
    LastError    text
);

create unique index Jobs_Id on Jobs (Id);
-- What waits to be dispatched. The predicate names only DispatchedAt, which neither claim nor outcome changes.
create index Jobs_Waiting on Jobs (Priority, RunAt, Seq) where DispatchedAt is null;
-- What was dispatched, by lane and time: a lost id is found between two times. Never changed by claim or outcome.
create index Jobs_Dispatched on Jobs (Priority, DispatchedAt) where DispatchedAt is not null;

create table JobAttempts (
    Seq        integer not null,
    Token      integer not null,
    Attempt    integer not null,
    StartedAt  integer,
    FinishedAt integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    Error      text    not null,
    primary key (Seq, Token)
) without rowid;

create table FailedJobs (
    Seq           integer primary key autoincrement,
    Id            text    not null collate nocase,
    OriginalJobId text    not null collate nocase,
    Type          text    not null,
    Payload       text    not null,
    Priority      text    not null,
    Reason        text    not null,
    FailedAt      integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
);

create unique index FailedJobs_Id on FailedJobs (Id);
create index FailedJobs_OriginalJobId on FailedJobs (OriginalJobId);

-- One row for each claimed batch: the lease under which this replica runs the jobs of Seqs (a JSON array) until LeaseUntil.
create table Leases (
    Token      integer primary key autoincrement,
    ReplicaId  integer not null,
    LeaseUntil integer not null,
    Seqs       text    not null
);

create index Leases_LeaseUntil on Leases (LeaseUntil);

-- The unique keys of live jobs.
create table JobKeys (
    UniqueKey text primary key,
    JobId     text not null collate nocase
) without rowid;

create table IdempotencyKeys (
    IdempotencyKey text primary key,
    RequestHash    text    not null,
    Results        text    not null,
    CreatedAt      integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
) without rowid;

create table Replicas (
    Id        integer primary key,
    Name      text    not null,
    StartedAt integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    SeenAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    Holds     integer not null default 0
);

-- Everything dispatched to a lane before SweptTo has been claimed, or was given back to dispatch.
create table Lanes (
    Lane    text    primary key,
    SweptTo integer not null default 0
) without rowid;

insert into Lanes (Lane) values ('high'), ('medium'), ('low');

create table JobStats (
    Minute     integer not null,
    Lane       text    not null,
    Type       text    not null,
    ReplicaId  integer not null,
    Completed  integer not null default 0,
    Retried    integer not null default 0,
    Failed     integer not null default 0,
    DurationMs integer not null default 0,
    primary key (Minute, Lane, Type, ReplicaId)
) without rowid;
