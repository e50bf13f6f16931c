//! What lies under the keys in Redis, ours and others'.

use trilane::job::Lane;
use trilane::queue::{LaneState, QueueError};

use super::{NO_WAIT, connect, every_lane, in_redis, seqs};

#[test]
fn the_keys_are_those_of_the_original_system() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    fixture.lanes.push(Lane::Medium, &seqs(1..=3)).expect("pushed");
    fixture.lanes.begin_epoch("now").expect("begun");

    let list: Vec<String> = redis::cmd("LRANGE")
        .arg(format!("{prefix}queue:jobs:medium"))
        .arg(0)
        .arg(-1)
        .query(&mut connect(url))
        .expect("a list");
    let epoch: String =
        redis::cmd("GET").arg(format!("{prefix}trilane:epoch")).query(&mut connect(url)).expect("a text");

    assert_eq!(list, ["3", "2", "1"]);
    assert_eq!(epoch, "now");
}

#[test]
fn lanes_under_another_prefix_are_other_lanes() {
    let (one, other) = (in_redis(), in_redis());
    one.lanes.push(Lane::High, &seqs(1..=1)).expect("pushed");

    assert_eq!(other.lanes.pop(&every_lane(1), NO_WAIT).expect("popped"), None);
    assert!(other.lanes.begin_epoch("other").expect("begun"));
    assert_eq!(one.lanes.epoch().expect("epoch"), None);
}

#[test]
fn entries_that_are_no_numbers_are_dropped_and_counted_and_harm_no_other() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    let key = format!("{prefix}queue:jobs:high");
    let entries = ["1", "{\"id\":\"of the original system\"}", "2", "", "9223372036854775808", "3"];
    redis::cmd("LPUSH").arg(&key).arg(&entries).exec(&mut connect(url)).expect("pushed");

    let popped = fixture.lanes.pop(&every_lane(10), NO_WAIT).expect("popped");

    assert_eq!(popped, Some((Lane::High, seqs(1..=3))));
    assert_eq!(fixture.lanes.foreign_entries(), 3);

    redis::cmd("LPUSH").arg(&key).arg(b"\xff\xfe").exec(&mut connect(url)).expect("pushed");
    assert_eq!(fixture.lanes.state().expect("state")[0], LaneState { len: 1, head: None });
    assert_eq!(fixture.lanes.pop(&every_lane(10), NO_WAIT).expect("popped"), None);
    assert_eq!(fixture.lanes.foreign_entries(), 4);
}

#[test]
fn a_key_that_holds_something_else_is_rejected_with_advice() {
    let fixture = in_redis();
    let (url, prefix) = fixture.shared.as_ref().expect("shared");
    redis::cmd("SET").arg(format!("{prefix}queue:jobs:high")).arg("mine").exec(&mut connect(url)).expect("set");

    let errors = [
        fixture.lanes.push(Lane::High, &seqs(1..=1)).expect_err("a push"),
        fixture.lanes.pop(&every_lane(1), NO_WAIT).expect_err("a pop"),
        fixture.lanes.state().expect_err("the state"),
    ];

    for error in errors {
        assert!(
            matches!(&error, QueueError::Rejected(why) if why.contains("WRONGTYPE") && why.contains("prefix")),
            "{error}"
        );
        assert!(!error.is_transient());
    }
}
