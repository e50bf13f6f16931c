//! The real program, as processes that are started, stopped, killed and cut off from their stores.

#![expect(clippy::panic, clippy::print_stderr, reason = "a test ends by a panic, and may tell on its way there")]

#[path = "../support/postgres_server.rs"]
mod postgres_server;
#[path = "../support/proxy.rs"]
mod proxy;
#[path = "../support/raw.rs"]
mod raw;
#[path = "../support/redis_server.rs"]
#[expect(dead_code, reason = "the tests of the lanes use the rest")]
mod redis_server;
#[path = "../support/site.rs"]
mod site;
#[path = "../support/stores.rs"]
#[expect(dead_code, reason = "the suite of the store uses the rest")]
mod stores;
#[path = "../support/trilane.rs"]
mod trilane;
#[path = "../support/upstream.rs"]
#[expect(dead_code, reason = "the chaos suite uses the rest")]
mod upstream;

mod busy;
mod cli;
mod crash;
mod cut;
mod database_faults;
mod faults;
mod handler_faults;
mod held_rows;
mod http_floods;
mod http_random;
mod http_requests;
mod idle;
mod load;
mod outage;
mod overload;
mod redis_faults;
mod requests;
mod roles;
mod sql;
mod sqlite_faults;
mod stop;
mod timing;

/// Tests that load the whole machine hold it together, those that measure time hold it alone.
static MACHINE: std::sync::RwLock<()> = std::sync::RwLock::new(());

fn load_the_machine() -> std::sync::RwLockReadGuard<'static, ()> {
    MACHINE.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn quieten_the_machine() -> std::sync::RwLockWriteGuard<'static, ()> {
    MACHINE.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Sets a flag, also where the test fails: so that a thread that goes on until then ends.
struct SetOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}
