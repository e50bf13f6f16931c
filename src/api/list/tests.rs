use std::sync::Arc;

use serde_json::Value;

use super::super::fake::{Fake, Told, ask};

fn get(fake: &Arc<Fake>, target: &str) -> Told {
    ask(&fake.api(), "GET", target, &[], b"")
}

fn count(told: &Told) -> usize {
    assert_eq!(told.status, 200, "{}", told.text);
    told.json().as_array().expect("an array").len()
}

fn next(told: &Told) -> Option<String> {
    let link = told.header("Link")?;
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a next link");
    Some(target.to_owned())
}

#[test]
fn an_empty_listing_is_an_empty_array() {
    let fake = Arc::new(Fake::default());

    assert_eq!(get(&fake, "/getAllJobs").text, "[]");
    assert_eq!(get(&fake, "/getAllJobs?limit=5").text, "[]");
    assert_eq!(get(&fake, "/failed-jobs").text, "[]");
}

#[test]
fn without_limit_everything_comes_in_order_chunk_by_chunk() {
    let fake = Arc::new(Fake::default());
    fake.fill(1_234, "t", "{}");

    let told = get(&fake, "/getAllJobs");

    assert_eq!((count(&told), told.header("Link")), (1_234, None));
    let ids: Vec<String> = told.json().as_array().expect("an array").iter().map(|job| job["id"].to_string()).collect();
    let stored: Vec<String> = fake.state().jobs.iter().map(|job| Value::from(job.id.to_string()).to_string()).collect();
    assert_eq!(ids, stored);
    assert_eq!(fake.reads(), 4, "16 + 500 + 500 + 218 rows");
}

#[test]
fn chunks_shrink_where_rows_are_large() {
    let fake = Arc::new(Fake::default());
    fake.fill(100, "t", &"x".repeat(250_000));

    let told = get(&fake, "/getAllJobs");

    assert_eq!(count(&told), 100);
    assert_eq!(fake.reads(), 1 + 21, "16 rows, then 4 each");
}

#[test]
fn a_store_that_is_away_at_the_start_is_a_503() {
    let fake = Arc::new(Fake::default());
    fake.state().reads_max = Some(0);

    for target in ["/getAllJobs", "/getAllJobs?limit=5", "/failed-jobs"] {
        let told = get(&fake, target);

        assert_eq!((told.status, told.header("Retry-After")), (503, Some("5")), "{target}");
        assert!(!told.text.contains("10.0.0.7"));
    }
}

#[test]
fn a_store_that_fails_in_the_middle_breaks_the_stream_off() {
    let fake = Arc::new(Fake::default());
    fake.fill(200, "t", "{}");
    fake.state().reads_max = Some(1);

    let told = get(&fake, "/getAllJobs");

    assert_eq!(told.status, 200);
    assert!(told.text.ends_with("}BROKEN OFF"), "{}", told.text);
}

#[test]
fn pages_follow_each_other_by_their_links_and_keep_the_filters() {
    let fake = Arc::new(Fake::default());
    for _ in 0..5 {
        fake.fill(1, "a", "{}");
        fake.fill(1, "b c", "{}");
    }

    let first = get(&fake, "/getAllJobs?type=b%20c&limit=2");
    let second_target = next(&first).expect("more");
    let second = get(&fake, &second_target);
    let third = get(&fake, &next(&second).expect("more"));

    assert_eq!((count(&first), count(&second), count(&third)), (2, 2, 1));
    assert!(second_target.starts_with("/getAllJobs?type=b%20c&limit=2&cursor=j"), "{second_target}");
    assert_eq!(next(&third), None);
    assert!([first, second, third].iter().all(|told| !told.text.contains("\"a\"")));
}

#[test]
fn a_page_that_is_just_full_has_no_next() {
    let fake = Arc::new(Fake::default());
    fake.fill(4, "t", "{}");

    assert!(next(&get(&fake, "/getAllJobs?limit=3")).is_some());
    assert_eq!(next(&get(&fake, "/getAllJobs?limit=4")), None);
}

#[test]
fn a_page_of_large_rows_ends_early_and_goes_on_by_its_link() {
    let fake = Arc::new(Fake::default());
    fake.fill(60, "t", &"x".repeat(250_000));

    let first = get(&fake, "/getAllJobs?limit=1000");
    let second = get(&fake, &next(&first).expect("more"));

    assert_eq!(count(&first), 36);
    assert_eq!((count(&second), next(&second)), (24, None));
}

#[test]
fn a_large_page_of_small_rows_is_whole() {
    let fake = Arc::new(Fake::default());
    fake.fill(1_500, "t", "{}");

    let told = get(&fake, "/getAllJobs?limit=1000");

    assert_eq!(count(&told), 1_000);
    assert_eq!(count(&get(&fake, &next(&told).expect("more"))), 500);
}

#[test]
fn filters_are_read_in_any_case_and_handed_on() {
    let fake = Arc::new(Fake::default());
    fake.fill(3, "t", "{}");
    fake.state().jobs[1].status = "failed".into();
    fake.state().jobs[2].priority = "high".into();

    assert_eq!(count(&get(&fake, "/getAllJobs?status=FAILED")), 1);
    assert_eq!(count(&get(&fake, "/getAllJobs?priority=High")), 1);
    assert_eq!(count(&get(&fake, "/getAllJobs?since=2026-11-23T15:45:00+01:00&type=t")), 0);
    assert_eq!(count(&get(&fake, "/getAllJobs?since=2020-01-01T00:00:00Z")), 3);
}

#[test]
fn wrong_parameters_are_named() {
    let fake = Arc::new(Fake::default());
    for (query, named) in [
        ("status=done", "status must be one of queued, running"),
        ("priority=urgent", "priority must be high, medium or low, got \\\"urgent\\\""),
        ("since=yesterday", "since must be a time as in RFC 3339"),
        ("limit=0", "limit must be a whole number from 1 to 1000, got \\\"0\\\""),
        ("limit=1001", "limit must be"),
        ("limit=", "limit must be"),
        ("type=", "type must be 1 to 100 characters"),
        ("cursor=5", "cursor must be"),
        ("cursor=d5", "cursor must be"),
        ("cursor=j-5", "cursor must be"),
        (
            "state=queued",
            "unknown query parameter \\\"state\\\"; known are status, type, priority, since, limit, cursor",
        ),
    ] {
        let told = get(&fake, &format!("/getAllJobs?{query}"));

        assert_eq!(told.status, 400, "{query}");
        assert!(told.text.contains(named), "{}", told.text);
    }
    assert!(get(&fake, "/failed-jobs?status=failed").text.contains("unknown query parameter"));
}

#[test]
fn dead_letters_are_listed_likewise() {
    let fake = Arc::new(Fake::default());
    let letters: Vec<_> = (0..3).map(|_| fake.bury("t")).collect();

    let all = get(&fake, "/failed-jobs");
    let page = get(&fake, "/failed-jobs?limit=2&type=t&priority=MEDIUM&since=1970-01-01T00:00:00Z");

    assert_eq!(count(&all), 3);
    assert_eq!(all.json()[0]["original_job_id"], letters[0].original_job_id.to_string());
    assert_eq!(count(&page), 2);
    assert_eq!(count(&get(&fake, &next(&page).expect("more"))), 1);
}
