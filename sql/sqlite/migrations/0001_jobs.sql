-- Trilane's tables on SQLite. Times are whole milliseconds since 1970-01-01T00:00:00Z. What each column means: sql/README.md.

-- A database of the original system is taken over: its tables step aside, their rows are copied below. Where there are none, empty
-- tables stand in for them, so that there is one way. Adding Seq fails where it is there: such a table is not the original's.
create table if not exists Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt);
create table if not exists FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt);
alter table Jobs add column Seq integer;
alter table FailedJobs add column Seq integer;
alter table Jobs rename to JobsBeforeTrilane;
alter table FailedJobs rename to FailedJobsBeforeTrilane;

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

-- The original's rows, in the order of time (as text that SQLite reads). What had not ended is queued again; what has ended counts as
-- dispatched, so that it is not found among what waits.
insert into Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt, RunAt, FinishedAt, DispatchedAt)
select lower(b.Id), coalesce(b.Type, ''), coalesce(b.Payload, 'null'), coalesce(b.Priority, 'medium'), coalesce(b.MaxRetries, 3),
       coalesce(b.RetryCount, 0), coalesce(b.ended, 'queued'), b.created_at, b.updated_at, b.created_at,
       case when b.ended is not null then b.updated_at end, case when b.ended is not null then b.updated_at end
from (
    select *, cast(round((julianday(coalesce(CreatedAt, UpdatedAt, 'now')) - 2440587.5) * 86400000.0) as integer) as created_at,
           cast(round((julianday(coalesce(UpdatedAt, CreatedAt, 'now')) - 2440587.5) * 86400000.0) as integer) as updated_at,
           case when lower(trim(Status)) in ('completed', 'complete', 'succeeded', 'success', 'done', 'finished') then 'completed'
                when lower(trim(Status)) in ('failed', 'dead', 'deadletter', 'dead_letter', 'dead-letter') then 'failed'
                when lower(trim(Status)) in ('cancelled', 'canceled', 'aborted', 'deleted') then 'cancelled' end as ended
    from JobsBeforeTrilane) as b
order by b.created_at;

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

insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt)
select lower(b.Id), lower(b.OriginalJobId), coalesce(b.Type, ''), coalesce(b.Payload, 'null'), coalesce(b.Priority, 'medium'), coalesce(b.Reason, ''),
       cast(round((julianday(coalesce(b.FailedAt, 'now')) - 2440587.5) * 86400000.0) as integer)
from FailedJobsBeforeTrilane as b order by julianday(coalesce(b.FailedAt, 'now'));

drop table FailedJobsBeforeTrilane;
drop table JobsBeforeTrilane;

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

-- Which are old enough to be forgotten.
create index IdempotencyKeys_CreatedAt on IdempotencyKeys (CreatedAt);

create table Replicas (
    Id        integer primary key,
    Name      text    not null,
    StartedAt integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    SeenAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer)),
    Holds     integer not null default 0
);

-- Everything dispatched to a lane before SweptTo has been claimed, or was given back to dispatch. At first there is nothing of the kind.
create table Lanes (
    Lane    text    primary key,
    SweptTo integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
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
