//! Rows as they should not be: what plain SQL and changes by hand may leave, and what then becomes of the others.

use super::stores::try_execute;
use super::*;

/// Rows that cannot be read, in the lane high between two good ones. Returns how many.
fn insert_unreadable(fresh: &TestStore) -> usize {
    let insert = |id: &str, columns: &str, values: &str| {
        format!("INSERT INTO Jobs (Type, Priority, {id}Payload{columns}) VALUES ('x', 'high', {values})")
    };
    let good = insert("", "", "'{}'");
    let bad: Vec<String> = match fresh.store.dialect() {
        // Without its dashes the id has a form that the check of the table refuses; here it is off.
        Dialect::Sqlite => vec![
            "pragma ignore_check_constraints = on".into(),
            insert("Id, ", "", "'0123456789abcdef0123456789abcdef0123', '{}'"),
        ],
        // A null fails where the row is read, an infinite time in the statement itself.
        Dialect::Postgres => vec![
            "alter table Jobs alter column Payload drop not null".into(),
            "alter table Jobs drop constraint Jobs_times_are_finite".into(),
            insert("", "", "null"),
            insert("", ", CreatedAt", "'{}', '-infinity'"),
        ],
        // Nothing there cannot be read; a rule of the client's own refuses the claim.
        Dialect::Mssql => vec![
            "ALTER TABLE Jobs ADD CONSTRAINT ClientsRule CHECK (Status <> N'running' OR MaxRetries < 99)".into(),
            insert("", ", MaxRetries", "'{}', 99"),
        ],
    };
    let count = bad.iter().filter(|sql| sql.starts_with("INSERT")).count();
    let all: Vec<&str> =
        [good.as_str()].into_iter().chain(bad.iter().map(String::as_str)).chain([good.as_str()]).collect();
    execute_all(&fresh.connection_string, &all);
    count
}

fn on_every_fresh(test: impl Fn(&TestStore)) {
    for dialect in dialects() {
        eprintln!("on {}", dialect.as_str());
        let fresh = TestStore::new(dialect);
        fresh.store.migrate().expect("migrated");
        test(&fresh);
    }
}

fn reasons(store: &Store) -> Vec<String> {
    let letters = store.dead_letters(&DeadLetterFilter::default(), None, 100).expect("read");
    letters.into_iter().map(|letter| letter.reason).collect()
}

/// Asked outside Trilane, whose listing may not be able to read what is tested here.
fn count(fresh: &TestStore, status: &str) -> usize {
    let sql = format!("select count(*) from Jobs where Status = '{status}'");
    usize::try_from(number(&fresh.connection_string, &sql)).expect("a count")
}

#[test]
fn a_row_that_cannot_be_read_is_buried_and_holds_up_no_other() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let bad = insert_unreadable(fresh);
        let due = store.dispatch(Lane::High, REPLICA, TICK, 100).expect("dispatched").due;
        let seqs: Vec<Seq> = due.iter().map(|due| due.seq).collect();

        let claim = store.claim(&seqs, REPLICA, LEASE).expect("claimed");
        store.bury_odd(&claim.odd).expect("buried");

        assert_eq!(seqs.len(), bad + 2);
        assert_eq!(claim.jobs.iter().map(|job| job.seq).collect::<Vec<_>>(), [seqs[0], seqs[bad + 1]]);
        assert_eq!(claim.odd.len(), bad);
        let says_why = |reason: &String| {
            ["its row cannot be read: ", "its claim is refused: "].iter().any(|why| reason.starts_with(why))
        };
        assert!(reasons(store).iter().all(says_why), "{:?}", reasons(store));
        assert_eq!((reasons(store).len(), count(fresh, "failed"), count(fresh, "running")), (bad, bad, 2));
        assert!(store.claim(&seqs, REPLICA, LEASE).expect("claimed").odd.is_empty());
    });
}

#[test]
fn claim_next_passes_over_a_row_that_cannot_be_read() {
    on_every_fresh(|fresh| {
        let bad = insert_unreadable(fresh);

        let claim = fresh.store.claim_next(Lane::High, 100, REPLICA, LEASE).expect("claimed");
        fresh.store.bury_odd(&claim.odd).expect("buried");

        assert_eq!((claim.jobs.len(), claim.odd.len()), (2, bad));
        assert_eq!(count(fresh, "failed"), bad);
        assert!(fresh.store.claim_next(Lane::High, 100, REPLICA, LEASE).expect("claimed").odd.is_empty());
    });
}

#[test]
fn an_expired_lease_is_ended_though_one_of_its_rows_cannot_be_read() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let stored = submit(store, &jobs(2, Lane::High));
        let seqs = [stored[0].seq, stored[1].seq];
        let claimed = store.claim(&seqs, OTHER, Duration::ZERO).expect("claimed").jobs;
        let first = seqs[0].0;
        let spoil = match store.dialect() {
            Dialect::Sqlite => [
                "pragma ignore_check_constraints = on".to_owned(),
                format!("update Jobs set Id = '0123456789abcdef0123456789abcdef0123' where Seq = {first}"),
            ],
            Dialect::Postgres => [
                "alter table Jobs alter column MaxRetries drop not null".to_owned(),
                format!("update Jobs set MaxRetries = null where Seq = {first}"),
            ],
            Dialect::Mssql => return, // Nothing there cannot be read.
        };
        execute_all(&fresh.connection_string, &[&spoil[0], &spoil[1]]);
        std::thread::sleep(Duration::from_millis(5)); // OK: lets the lease of zero length run out by the database's clock

        let expired = store.expire(REPLICA, |_| retry(Duration::ZERO)).expect("expired").expect("a lease had run out");

        assert_eq!(expired.iter().map(|job| job.seq).collect::<Vec<_>>(), [claimed[1].seq]);
        assert_eq!(reasons(store).len(), 1);
        assert_eq!((count(fresh, "failed"), count(fresh, "retrying")), (1, 1));
        assert!(store.expire(REPLICA, |_| retry(Duration::ZERO)).expect("expired").is_none());
    });
}

/// From now on the database refuses that the attempts of some jobs are kept.
fn refuse_attempts(fresh: &TestStore, of: &str) {
    let rule = match fresh.store.dialect() {
        Dialect::Sqlite => format!(
            "create trigger ClientsRule before insert on JobAttempts when new.{of} begin select raise(abort, 'refused'); end"
        ),
        // Those that are there may be such ones.
        Dialect::Postgres => {
            format!("alter table JobAttempts add constraint ClientsRule check (not ({of})) not valid")
        }
        Dialect::Mssql => format!("ALTER TABLE JobAttempts WITH NOCHECK ADD CONSTRAINT ClientsRule CHECK (NOT ({of}))"),
    };
    execute(&fresh.connection_string, &rule);
}

fn accept_attempts(fresh: &TestStore) {
    let sql = match fresh.store.dialect() {
        Dialect::Sqlite => "drop trigger ClientsRule",
        Dialect::Postgres | Dialect::Mssql => "alter table JobAttempts drop constraint ClientsRule",
    };
    execute(&fresh.connection_string, sql);
}

/// Ends all leases that ran out. Returns how many jobs were taken back.
fn expire_all(store: &Store) -> usize {
    let mut count = 0;
    while let Some(expired) = store.expire(REPLICA, |_| retry(Duration::ZERO)).expect("expired") {
        count += expired.len();
    }
    count
}

#[test]
fn a_job_whose_outcome_is_refused_keeps_no_other_from_being_taken_back() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let seqs: Vec<Seq> = submit(store, &jobs(40, Lane::High)).iter().map(|stored| stored.seq).collect();
        // The one to blame is in the lease that ran out first.
        for seqs in seqs.chunks(10) {
            assert_eq!(store.claim(seqs, OTHER, Duration::ZERO).expect("claimed").jobs.len(), 10);
        }
        refuse_attempts(fresh, &format!("Seq = {}", seqs[3].0));
        std::thread::sleep(Duration::from_millis(5)); // OK: lets the leases of zero length run out by the database's clock

        let count_taken = expire_all(store);

        assert_eq!((count_taken, count(fresh, "retrying"), count(fresh, "failed")), (40, 39, 1));
        assert_eq!(reasons(store).len(), 1);
        assert!(reasons(store)[0].starts_with("its lease ran out, and what became of it could not be stored: "));
        assert_eq!(number(&fresh.connection_string, "select count(*) from Leases"), 0);
        assert_eq!(number(&fresh.connection_string, "select count(*) from JobAttempts"), 39);
    });
}

#[test]
fn where_every_outcome_is_refused_no_job_is_given_up_for_it() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let seqs: Vec<Seq> = submit(store, &jobs(30, Lane::High)).iter().map(|stored| stored.seq).collect();
        for seqs in seqs.chunks(10) {
            store.claim(seqs, OTHER, Duration::ZERO).expect("claimed");
        }
        refuse_attempts(fresh, "Attempt > 0");
        std::thread::sleep(Duration::from_millis(5)); // OK: as above

        let refused = store.expire(REPLICA, |_| retry(Duration::ZERO)).expect_err("it is refused");

        assert!(!refused.is_transient(), "{refused}");
        assert_eq!((count(fresh, "running"), reasons(store).len()), (30, 0));
        accept_attempts(fresh);
        assert_eq!((expire_all(store), count(fresh, "retrying")), (30, 30));
    });
}

#[test]
fn counts_out_of_range_are_stored_as_far_as_they_go() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let sql = "INSERT INTO Jobs (Type, Payload, RetryCount, MaxRetries) VALUES ('x', '{}', 2147483647, 2147483647)";
        execute_all(&fresh.connection_string, &[sql, sql]);
        let claimed = store.claim_next(Lane::Medium, 1, REPLICA, LEASE).expect("claimed").jobs.remove(0);
        assert_eq!((claimed.retry_count, claimed.max_retries), (100, 100));
        store.claim_next(Lane::Medium, 1, OTHER, Duration::ZERO).expect("claimed");
        std::thread::sleep(Duration::from_millis(5)); // OK: as above

        let policy = trilane::retry::RetryPolicy { base: Duration::ZERO, cap: Duration::ZERO };
        let judge =
            |retries, max| trilane::retry::judge(trilane::retry::Report::retry("no"), retries, max, &policy, 0.5);
        let expired = store.expire(REPLICA, |job| judge(job.retry_count, job.max_retries)).expect("expired");

        assert_eq!(expired.expect("a lease had run out").len(), 1);
        assert!(finish(store, &claimed, judge(claimed.retry_count, claimed.max_retries)));
        assert_eq!((count(fresh, "failed"), reasons(store).len()), (2, 2), "{:?}", reasons(store));
    });
}

#[test]
fn what_is_odd_is_given_up_a_batch_at_a_time() {
    on_every_fresh(|fresh| {
        let rows = vec!["('x', '{}', 'nowhere')"; 500].join(", ");
        let sql = format!("INSERT INTO Jobs (Type, Payload, Priority) VALUES {rows}");
        execute_all(&fresh.connection_string, &[&sql, &sql, &sql]);
        let mut seen = Vec::new();
        loop {
            let found = fresh.store.regularise().expect("regular");
            fresh.store.bury_odd(&found.odd).expect("buried");
            seen.push(found.odd.len());
            if !found.is_more {
                break;
            }
        }

        assert_eq!(seen, [1_000, 500]);
        assert_eq!((count(fresh, "failed"), reasons(&fresh.store).len()), (1_500, 100), "a page of them");
    });
}

#[test]
fn a_listing_shows_what_can_be_read_of_a_row() {
    let fresh = TestStore::new(Dialect::Sqlite);
    fresh.store.migrate().expect("migrated");
    insert_unreadable(&fresh);

    let listed = fresh.store.jobs(&JobFilter::default(), None, 10).expect("read");

    assert_eq!(listed.len(), 3);
    assert!(listed[1].id.is_nil());
    assert_eq!((listed[1].job_type.as_str(), listed[1].status.as_str()), ("x", "queued"));
}

#[test]
fn a_job_inserted_as_running_becomes_a_dead_letter_that_says_so() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        for (lane, status) in [("high", "running"), ("HIGH", "Running"), ("high", "waiting")] {
            let sql = format!(
                "INSERT INTO Jobs (Type, Payload, Priority, Status) VALUES ('x', '{{}}', '{lane}', '{status}')"
            );
            execute(&fresh.connection_string, &sql);
        }
        let held = claim_one(store, submit_one(store, NewJob { lane: Lane::High, ..NewJob::new("x", "{}") }));

        store.regularise().expect("regular");
        let odd = store.dispatch(Lane::High, REPLICA, TICK, 10).expect("dispatched").odd;
        store.bury_odd(&odd).expect("buried");

        assert_eq!((count(fresh, "failed"), reasons(store).len()), (3, 3));
        assert!(reasons(store).iter().all(|reason| reason.contains("insert jobs as 'queued'")));
        let by_mistake = trilane::store::OddRow { seq: held.seq, token: None, reason: "odd".into() };
        store.bury_odd(&[by_mistake]).expect("nothing to do");
        assert_eq!(status(store, held.id), Status::Running, "a job that was claimed is not touched");
    });
}

#[test]
fn a_value_that_could_not_be_read_is_refused_and_the_refusal_names_it() {
    let refused = |fresh: &TestStore, columns: &str, values: &str| {
        let sql = format!("insert into Jobs (Type, Payload, {columns}) values ('x', '{{}}', {values})");
        try_execute(&fresh.connection_string, &sql).expect_err("it is refused").to_string()
    };
    on_every_fresh(|fresh| match fresh.store.dialect() {
        Dialect::Sqlite => {
            for column in ["CreatedAt", "UpdatedAt", "RunAt", "StartedAt", "FinishedAt", "DispatchedAt"] {
                let said = refused(fresh, column, "datetime('now')");
                assert!(said.contains(&format!("{column}_is_milliseconds_since_1970")), "{said}");
            }
            for (column, value) in [("MaxRetries", "'many'"), ("RetryCount", "1.5"), ("TimeoutMs", "'1 s'")] {
                let said = refused(fresh, column, value);
                assert!(said.contains(&format!("{column}_is_an_integer")), "{said}");
            }
            let said = refused(fresh, "Id", "'0123456789abcdef0123456789abcdef0123'");
            assert!(said.contains("Id_is_a_uuid_with_dashes"), "{said}");
            let sql = "insert into Jobs (Type, Payload) values ('x', x'ff')";
            let said = try_execute(&fresh.connection_string, sql).expect_err("it is refused").to_string();
            assert!(said.contains("Payload_is_text"), "{said}");
        }
        Dialect::Postgres => {
            let said = refused(fresh, "CreatedAt", "'-infinity'");
            assert!(said.to_lowercase().contains("jobs_times_are_finite"), "{said}");
        }
        Dialect::Mssql => {}
    });
}

#[test]
fn on_sqlite_an_original_table_with_more_columns_is_not_taken_over() {
    let fresh = TestStore::new(Dialect::Sqlite);
    for sql in original_tables(Dialect::Sqlite) {
        execute(&fresh.connection_string, &sql);
    }
    execute(&fresh.connection_string, "alter table FailedJobs add column Note text");

    let refused = fresh.store.migrate().expect_err("it is refused").to_string();

    assert!(refused.contains("has_a_column_that_would_be_lost"), "{refused}");
    execute(
        &fresh.connection_string,
        "insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Note) values (1, 2, 3, 4, 5, 6)",
    );
}

#[test]
fn of_two_attempts_of_one_job_in_a_batch_only_the_one_that_holds_it_counts() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let stored = submit_one(store, NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") });
        let old = store.claim(&[stored.seq], OTHER, Duration::ZERO).expect("claimed").jobs.remove(0);
        std::thread::sleep(Duration::from_millis(5)); // OK: as above
        store.expire(REPLICA, |_| retry(Duration::ZERO)).expect("expired").expect("a lease had run out");
        let new = claim_one(store, stored);

        let outcomes = [outcome(&old, bury()), outcome(&new, retry(Duration::ZERO))];
        let accepted = store.finish(&outcomes, REPLICA, Some(TICK)).expect("finished");

        assert_eq!(accepted.iter().map(|one| (one.seq, one.token)).collect::<Vec<_>>(), [(new.seq, new.token)]);
        let attempts: Vec<Token> =
            store.failed_attempts(old.id).expect("read").iter().map(|attempt| attempt.token).collect();
        assert_eq!((attempts, letters(store)), (vec![old.token, new.token], 0));
        let keyed = NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") };
        let taken = store.submit(&[&keyed], REPLICA, HORIZON_MS).expect("answered")[0].expect_err("taken");
        assert_eq!(taken.held_by, old.id, "the job lives, so it keeps its key");
    });
}

#[test]
fn a_buried_odd_row_gives_its_unique_key_up() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let keyed = || NewJob { unique_key: Some("order-9".into()), ..NewJob::new("x", "{}") };
        store.submit(&[&keyed()], REPLICA, None).expect("stored")[0].expect("the key is free");
        execute(&fresh.connection_string, "update Jobs set Status = 'waiting'");

        let odd = store.dispatch(Lane::Medium, REPLICA, TICK, 10).expect("dispatched").odd;
        store.bury_odd(&odd).expect("buried");

        assert!(store.submit(&[&keyed()], REPLICA, HORIZON_MS).expect("answered")[0].is_ok());
    });
}

#[test]
fn a_dead_letter_that_cannot_be_revived_leaves_the_key_of_the_live_job() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let keyed = || NewJob { unique_key: Some("order-10".into()), ..NewJob::new("x", "{}") };
        let live = keyed();
        store.submit(&[&live], REPLICA, HORIZON_MS).expect("stored")[0].expect("the key is free");
        let letter = format!(
            "insert into FailedJobs (Id, OriginalJobId, Type, Payload, Priority, Reason) \
             values ('{}', '{}', 'x', '{{}}', 'high', 'by hand')",
            Uuid::new_v4(),
            live.id
        );
        execute(&fresh.connection_string, &letter);

        assert_eq!(store.revive(live.id, REPLICA).expect("answered"), Revived::NotFailed);

        let taken = store.submit(&[&keyed()], REPLICA, HORIZON_MS).expect("answered")[0].expect_err("taken");
        assert_eq!(taken.held_by, live.id);
    });
}

#[test]
fn a_key_that_is_given_up_at_this_moment_is_had_or_held_by_a_job() {
    // Elsewhere a session that looks at a key keeps others from changing it.
    let fresh = TestStore::new(Dialect::Postgres);
    fresh.store.migrate().expect("migrated");
    let (holder, done) = (Uuid::new_v4(), std::sync::atomic::AtomicBool::new(false));
    let (take, give) = (
        format!("insert into JobKeys (UniqueKey, JobId) values ('k', '{holder}') on conflict do nothing"),
        format!("delete from JobKeys where UniqueKey = 'k' and JobId = '{holder}'"),
    );

    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pairs: Vec<&str> = [take.as_str(), give.as_str()].into_iter().cycle().take(200).collect();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                execute_all(&fresh.connection_string, &pairs);
            }
        });
        let holders: Vec<Uuid> = (0..400)
            .filter_map(|_| {
                let job = NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") };
                let result = fresh.store.submit(&[&job], REPLICA, HORIZON_MS).map(|results| results[0]);
                match result {
                    Ok(Ok(_)) => fresh.store.cancel(job.id).err().map(|_| Uuid::max()),
                    Ok(Err(taken)) => Some(taken.held_by),
                    Err(_) => Some(Uuid::max()),
                }
            })
            .collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(holders.iter().find(|by| **by != holder), None);
    });
}

#[test]
fn a_statement_that_is_refused_undoes_its_transaction_and_keeps_its_connection() {
    on_every_fresh(|fresh| {
        let store = &fresh.store;
        let rename = |from: &str, to: &str| match store.dialect() {
            Dialect::Mssql => format!("EXEC sp_rename '{from}', '{to}', 'OBJECT'"),
            Dialect::Postgres | Dialect::Sqlite => format!("alter table {from} rename to {to}"),
        };
        let sessions = || match store.dialect() {
            // Which they are, and how many of them are in a transaction.
            Dialect::Postgres => Some(number(
                &fresh.connection_string,
                "select coalesce(sum(case state when 'idle' then pid else -1000000000 end), 0) from pg_stat_activity \
                 where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()",
            )),
            Dialect::Mssql | Dialect::Sqlite => None,
        };
        let keyed = || NewJob { unique_key: Some("k".into()), ..NewJob::new("x", "{}") };
        let submit = || store.submit(&[&keyed()], REPLICA, HORIZON_MS);
        store.ping().expect("answers");
        let before = sessions();

        execute(&fresh.connection_string, &rename("Jobs", "JobsAway"));
        let refused = submit().expect_err("there is no table");
        assert!(matches!(refused, StoreError::Corrupt(_)), "{refused}");
        let after = sessions();
        execute(&fresh.connection_string, &rename("JobsAway", "Jobs"));

        assert_eq!(after, before);
        assert_eq!(number(&fresh.connection_string, "select count(*) from JobKeys"), 0, "its key was taken before");
        submit().expect("answered")[0].expect("the key is free");
    });
}
