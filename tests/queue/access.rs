//! Ways to a server: URLs, passwords, permissions, TLS, and what it tells of itself.

use std::time::Duration;

use trilane::job::Lane;
use trilane::queue::{Lanes, QueueError};

use super::server::TestServer;
use super::{NO_WAIT, WAIT, assert_unavailable, connect, every_lane, pop_all, seqs};

#[test]
fn user_password_and_database_are_taken_from_the_url() {
    let mut server = TestServer::start_tcp(&["--requirepass", "p@ss/w:rd"]);
    let address = server.address().to_owned();
    server.set_url(format!("redis://:p%40ss%2Fw%3Ard@{address}/3"));
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let as_user = Lanes::redis(&format!("redis://default:p%40ss%2Fw%3Ard@{address}/3"), "").expect("a good URL");

    lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");

    let elsewhere = Lanes::redis(&format!("redis://:p%40ss%2Fw%3Ard@{address}/0"), "").expect("a good URL");
    assert_eq!(elsewhere.pop(&every_lane(1), NO_WAIT).expect("popped"), None);
    assert_eq!(as_user.pop(&every_lane(1), NO_WAIT).expect("popped"), Some((Lane::High, seqs(1..=1))));
    assert_eq!(lanes.to_string(), format!("Redis at {address}, database 3"));
}

#[test]
fn a_wrong_password_is_told_without_telling_the_password() {
    let server = TestServer::start_tcp(&["--requirepass", "right"]);
    let address = server.address();

    for (url, expected) in [
        (format!("redis://:hunter2@{address}"), "WRONGPASS"),
        (format!("redis://somebody:hunter2@{address}/1"), "WRONGPASS"),
        (format!("redis://{address}"), "NOAUTH"),
        (format!("redis://:right@{address}/99"), "out of range"),
    ] {
        let lanes = Lanes::redis(&url, "").expect("a good URL");
        let error = assert_unavailable(&lanes.ping(), expected);
        assert_unavailable(&lanes.pop(&every_lane(1), WAIT), expected);

        let told = format!("{error} {error:?} {lanes} {lanes:?}");
        assert!(!told.contains("hunter2") && !told.contains("right@"), "{told}");
        assert!(told.contains(address), "{told}");
    }
}

#[test]
fn a_url_that_cannot_be_is_refused_at_once_without_telling_the_password() {
    for url in [
        "",
        "localhost:6379",
        "http://:hunter2@localhost",
        "redis://:hunter2@localhost:port",
        "redis://:hunter2@localhost/zero",
        "redis://:hunter2@/0",
        "rediss://:hunter2@localhost/#insecure",
        "rediss://:hunter2@localhost/#other",
        "redis://:hunter2@localhost/?protocol=hunter3",
    ] {
        let refusal = Lanes::redis(url, "").expect_err(url);

        assert!(matches!(refusal, QueueError::Rejected(_)) && !refusal.is_transient(), "{url}: {refusal}");
        assert!(!refusal.to_string().contains("hunter2"), "{refusal}");
    }
}

#[test]
fn a_user_with_only_the_documented_permissions_can_do_all() {
    let permissions = "on >pw ~queue:jobs:* ~trilane:epoch -@all +client|setname +ping +info +get +set +llen +lindex \
                       +lpush +rpush +rpop +blmpop";
    let server = TestServer::start_tcp(&[]);
    let rules: Vec<&str> = permissions.split(' ').filter(|rule| !rule.is_empty()).collect();
    redis::cmd("ACL").arg("SETUSER").arg("trilane").arg(rules).exec(&mut connect(server.url())).expect("allowed");
    let lanes = Lanes::redis(&format!("redis://trilane:pw@{}", server.address()), "").expect("a good URL");
    let elsewhere = Lanes::redis(&format!("redis://trilane:pw@{}", server.address()), "x:").expect("a good URL");

    lanes.push(Lane::High, &seqs(1..=9)).expect("pushed");
    lanes.push_front(Lane::High, &seqs(0..=0)).expect("given back");
    let popped = lanes.pop(&[(Lane::High, 5), (Lane::Low, 1)], NO_WAIT).expect("popped");
    assert_eq!(popped, Some((Lane::High, seqs(0..=4))));
    assert_eq!(lanes.state().expect("state")[0].len, 5);
    assert!(lanes.begin_epoch("e").expect("begun"));
    assert_eq!(lanes.check_server(), Ok(None));

    for error in [
        elsewhere.push(Lane::High, &seqs(1..=1)).expect_err("a push"),
        elsewhere.pop(&every_lane(1), NO_WAIT).expect_err("a pop"),
    ] {
        assert!(matches!(&error, QueueError::Rejected(why) if why.contains("NOPERM")), "{error}");
    }
}

/// In a process of its own, as the certificate to trust comes from the environment.
#[test]
fn a_server_is_reached_over_tls_if_its_certificate_is_trusted() {
    const URL_OF_CHILD: &str = "TRILANE_TEST_REDIS_TLS";
    if let Ok(url) = std::env::var(URL_OF_CHILD) {
        let lanes = Lanes::redis(&url, "").expect("a good URL");
        lanes.push(Lane::High, &seqs(1..=5_000)).expect("pushed");
        assert_eq!(pop_all(&lanes), seqs(1..=5_000));
        assert_eq!(lanes.pop(&every_lane(1), Duration::from_millis(50)), Ok(None));
        return;
    }
    let server = TestServer::start_tls();
    let stranger = Lanes::redis(server.url(), "").expect("a good URL");

    assert_unavailable(&stranger.ping(), "certificate");

    let child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "access::a_server_is_reached_over_tls_if_its_certificate_is_trusted"])
        .env(URL_OF_CHILD, server.url())
        .env("SSL_CERT_FILE", server.certificate())
        .output()
        .expect("started");
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

#[test]
fn a_server_that_may_evict_or_does_not_tell_is_warned_of() {
    let server = TestServer::start(&["--maxmemory-policy", "allkeys-lru"]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let warning = lanes.check_server().expect("new enough").expect("a warning");
    assert!(warning.contains("allkeys-lru") && warning.contains("noeviction"), "{warning}");

    let server = TestServer::start(&["--rename-command", "INFO", ""]);
    let lanes = Lanes::redis(server.url(), "").expect("a good URL");
    let warning = lanes.check_server().expect("not known to be too old").expect("a warning");
    assert!(warning.contains("maxmemory-policy"), "{warning}");
}
