-- The database and the login that docker-compose.yml names, made by sqlcmd where they are missing. The tables are made by
-- `trilane migrate`. Variable: LOGIN_PASSWORD, from the environment.
if db_id(N'trilane') is null
    create database trilane;
go
-- Readers of whole listings then never wait for the workers' short writes (`trilane check` advises it).
if exists (select 1 from sys.databases where name = N'trilane' and is_read_committed_snapshot_on = 0)
    alter database trilane set read_committed_snapshot on with rollback immediate;
go
if suser_id(N'trilane') is null
    create login trilane with password = N'$(LOGIN_PASSWORD)', default_database = trilane;
else
    alter login trilane with password = N'$(LOGIN_PASSWORD)';
go
use trilane;
go
if user_id(N'trilane') is null
    create user trilane for login trilane;
go
-- The migrations make and change tables.
alter role db_owner add member trilane;
go
