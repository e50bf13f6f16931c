//! Requests changed at random: each connection must come to an end, and a good client must not notice.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::SetOnDrop;
use super::raw::{Raw, statuses, usage};
use super::site::Site;
use super::trilane::{SOON, wait_until};

/// Clients at once.
const CLIENTS: u64 = 4;
/// Connections of each.
const CONNECTIONS: usize = 300;
/// Set it to the seed that a failed test printed.
const SEED: &str = "TRILANE_TEST_SEED";

/// Requests to begin with.
const GOOD: [&str; 6] = [
    "GET /healthz HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
    "GET /getAllJobs?limit=3&status=queued HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 41\r\n\r\n[{\"type\":\"t\",\"payload\":{\"n\":1},\"x\":null}]",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"typ\r\n7;a=b\r\ne\":\"t\"}\r\n0\r\nX-T: 1\r\n\r\n",
    "POST /enqueue HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n{\"type\":\"t\"}",
    "HEAD /failed-jobs HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
];
/// What is put in.
const PARTS: [&str; 22] = [
    "\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    "0",
    "-1",
    "+1",
    "ffffffffffffffff",
    "18446744073709551616",
    "\r\n\r\n",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "HTTP/2.0",
    "\u{fffd}",
    "%00%ff%",
    "\r\n 0\r\n",
];

/// A xorshift generator: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 32).expect("64 bits") % limit.max(1)
    }

    fn one_of<T: Copy + Debug>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// One to three good requests, changed in up to four places.
    fn request(&mut self) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..=self.below(3)).flat_map(|_| self.one_of(&GOOD).bytes()).collect();
        for _ in 0..self.below(5) {
            let start = self.below(bytes.len() + 1);
            let end = (start + self.below(20)).min(bytes.len());
            match self.below(6) {
                0 => drop(bytes.drain(start..end)),
                1 => drop(bytes.splice(start..start, self.one_of(&PARTS).bytes())),
                2 => drop(bytes.splice(start..end, self.one_of(&PARTS).bytes())),
                3 => bytes.extend_from_within(start..end),
                4 => bytes.truncate(start.max(1)),
                _ if start < bytes.len() => bytes[start] ^= 1 << self.below(8),
                _ => {}
            }
        }
        bytes
    }
}

#[test]
fn requests_changed_at_random_disturb_nobody() {
    let _loaded = super::load_the_machine();
    let seed = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| u64::from(time.subsec_nanos()) << 20 | 1)
    });
    eprintln!("{SEED}={seed}");
    let site = Site::sqlite();
    let process = site.start(&site.settings());
    process.enqueue_one(json!({ "type": "t" }));
    let before = usage(process.pid());
    let (is_over, served) = (AtomicBool::new(false), AtomicUsize::new(0));

    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::SeqCst) {
                process.enqueue_one(json!({ "type": "t" }));
                served.fetch_add(1, Ordering::SeqCst);
            }
        });
        let _set = SetOnDrop(&is_over);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let address = process.address();
                scope.spawn(move || send_at_random(address, Random(seed.wrapping_add(number << 48) | 1)))
            })
            .collect();
        let answered: usize = clients.into_iter().map(|client| client.join().expect("no panic")).sum();
        assert!(answered > 100, "only {answered} answers: it is not HTTP that was changed");
    });

    assert!(served.into_inner() > 0);
    wait_until(SOON, "the threads have left", || usage(process.pid()).threads <= before.threads + 1);
    assert!(!process.has_logged("panicked"), "{}", process.log());
}

/// Returns how many answers there were.
fn send_at_random(address: &str, mut random: Random) -> usize {
    let mut answered = 0;
    for _ in 0..CONNECTIONS {
        let request = random.request();
        let mut connection = Raw::connect(address);
        for part in request.chunks(1 + random.below(request.len())) {
            // It may be refused before it is whole.
            if connection.send(part).is_err() {
                break;
            }
        }
        if random.below(8) == 0 {
            continue;
        }
        connection.end();
        let got = statuses(&connection.read_all());
        let known = [100, 200, 400, 404, 405, 408, 409, 411, 413, 415, 417, 422, 431, 501, 505, 403];
        assert!(got.iter().all(|status| known.contains(status)), "{got:?} for {:?}", String::from_utf8_lossy(&request));
        answered += got.len();
    }
    answered
}
