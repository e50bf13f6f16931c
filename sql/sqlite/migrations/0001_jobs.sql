-- Trilane's tables on SQLite. Times are whole milliseconds since 1970-01-01T00:00:00Z. What each column means: sql/README.md.
-- SQLite keeps any value in any column, so checks keep out what Trilane could not read; their names are what a client is told.

-- A database of the original system is taken over: its tables step aside, their rows are copied below. Where there are none, empty
-- tables stand in for them, so that there is one way. Adding Seq fails where it is there: such a table is not the original's.
create table if not exists Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt);
create table if not exists FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt);
alter table Jobs add column Seq integer;
alter table FailedJobs add column Seq integer;
alter table Jobs rename to JobsBeforeTrilane;
alter table FailedJobs rename to FailedJobsBeforeTrilane;

-- Their other columns would be lost, and SQLite cannot keep a table only if it has some: refused, for a person to decide.
create table Unknown (
    Name text constraint the_original_Jobs_or_FailedJobs_has_a_column_that_would_be_lost__drop_it_or_rename_the_table check (Name is null)
);
insert into Unknown select name from pragma_table_info('JobsBeforeTrilane') where lower(name) not in
    ('seq', 'id', 'type', 'payload', 'priority', 'maxretries', 'retrycount', 'status', 'createdat', 'updatedat');
insert into Unknown select name from pragma_table_info('FailedJobsBeforeTrilane') where lower(name) not in
    ('seq', 'id', 'originaljobid', 'type', 'payload', 'priority', 'reason', 'failedat');
drop table Unknown;

create table Jobs (
    Seq          integer primary key autoincrement,
    Id           text    not null collate nocase default (
        lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-a' || substr(hex(randomblob(2)), 2)
              || '-' || hex(randomblob(6))))
        constraint Id_is_a_uuid_with_dashes check (
            typeof(Id) = 'text' and Id glob '????????-????-????-????-????????????' and length(replace(Id, '-', '')) = 32
            and Id not glob '*[^0-9A-Fa-f-]*'),
    Type         text    not null constraint Type_is_text check (typeof(Type) = 'text'),
    Payload      text    not null constraint Payload_is_text check (typeof(Payload) = 'text'),
    Priority     text    not null default 'medium' constraint Priority_is_text check (typeof(Priority) = 'text'),
    MaxRetries   integer not null default 3 constraint MaxRetries_is_an_integer check (typeof(MaxRetries) = 'integer'),
    RetryCount   integer not null default 0 constraint RetryCount_is_an_integer check (typeof(RetryCount) = 'integer'),
    Status       text    not null default 'queued' constraint Status_is_text check (typeof(Status) = 'text'),
    CreatedAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
        constraint CreatedAt_is_milliseconds_since_1970 check (typeof(CreatedAt) = 'integer'),
    UpdatedAt    integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
        constraint UpdatedAt_is_milliseconds_since_1970 check (typeof(UpdatedAt) = 'integer'),
    RunAt        integer not null default (cast(round((julianday('now') - 2440587.5) * 86400000.0) as integer))
        constraint RunAt_is_milliseconds_since_1970 check (typeof(RunAt) = 'integer'),
    StartedAt    integer constraint StartedAt_is_milliseconds_since_1970 check (typeof(StartedAt) in ('integer', 'null')),
    FinishedAt   integer constraint FinishedAt_is_milliseconds_since_1970 check (typeof(FinishedAt) in ('integer', 'null')),
    DispatchedAt integer constraint DispatchedAt_is_milliseconds_since_1970 check (typeof(DispatchedAt) in ('integer', 'null')),
    DispatchedBy integer constraint DispatchedBy_is_an_integer check (typeof(DispatchedBy) in ('integer', 'null')),
    LeaseToken   integer constraint LeaseToken_is_an_integer check (typeof(LeaseToken) in ('integer', 'null')),
    LeasedBy     integer constraint LeasedBy_is_an_integer check (typeof(LeasedBy) in ('integer', 'null')),
    TimeoutMs    integer constraint TimeoutMs_is_an_integer check (typeof(TimeoutMs) in ('integer', 'null')),
    UniqueKey    text    constraint UniqueKey_is_text check (typeof(UniqueKey) in ('text', 'null')),
    LastError    text    constraint LastError_is_text check (typeof(LastError) in ('text', 'null'))
);

-- The original's rows, in the order of time (as text that SQLite reads). What had not ended is queued again; what has ended counts as
-- dispatched, so that it is not found among what waits.
insert into Jobs (Id, Type, Payload, Priority, MaxRetries, RetryCount, Status, CreatedAt, UpdatedAt, RunAt, FinishedAt, DispatchedAt)
select lower(b.Id), cast(coalesce(b.Type, '') as text), cast(coalesce(b.Payload, 'null') as text), cast(coalesce(b.Priority, 'medium') as text),
       cast(coalesce(b.MaxRetries, 3) as integer), cast(coalesce(b.RetryCount, 0) as integer), coalesce(b.ended, 'queued'), b.created_at, b.updated_at, b.created_at,
       case when b.ended is not null then b.updated_at end, case when b.ended is not null then b.updated_at end
from (
    select *, cast(round((coalesce(julianday(CreatedAt), julianday(UpdatedAt), julianday('now')) - 2440587.5) * 86400000.0) as integer) as created_at,
           cast(round((coalesce(julianday(UpdatedAt), julianday(CreatedAt), julianday('now')) - 2440587.5) * 86400000.0) as integer) as updated_at,
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
        constraint FailedAt_is_milliseconds_since_1970 check (typeof(FailedAt) = 'integer')
);

insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason, FailedAt)
select lower(b.Id), lower(b.OriginalJobId), coalesce(b.Type, ''), coalesce(b.Payload, 'null'), coalesce(b.Priority, 'medium'), coalesce(b.Reason, ''),
       cast(round((coalesce(julianday(b.FailedAt), julianday('now')) - 2440587.5) * 86400000.0) as integer)
from FailedJobsBeforeTrilane as b order by coalesce(julianday(b.FailedAt), julianday('now'));

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
