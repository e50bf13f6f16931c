//! The simulation's time. A thread that simulates reads it wherever it, or the SQLite it calls, asks the system for the time.
//!
//! Two places make that so: this program's own `clock_gettime`, which the standard library calls for `Instant::now`, and SQLite's
//! file system layer, which it asks for `julianday('now')`. Threads that do not simulate are told the real time.

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// 2026-01-01T00:00:00Z.
const BEGIN_UNIX_MS: u64 = 1_767_225_600_000;
/// A simulated process has been up for this long at the start.
const BEGIN: Duration = Duration::from_secs(1_000);
/// Each look at the clock costs time, so that what waits by looking at it ends.
const LOOK: Duration = Duration::from_micros(1);
/// 1970-01-01T00:00:00Z in SQLite's milliseconds.
const UNIX_EPOCH_JULIAN_MS: i64 = 210_866_760_000_000;

thread_local! { static NOW: Cell<Option<Duration>> = const { Cell::new(None) } }

/// Begins the simulated time of this thread.
pub(crate) fn begin() {
    static PATCH: Once = Once::new();
    PATCH.call_once(patch_sqlite);
    NOW.set(Some(BEGIN));
}

/// Gives this thread the real time again.
pub(crate) fn end() {
    NOW.set(None);
}

/// Lets time pass.
pub(crate) fn advance(by: Duration) {
    NOW.set(NOW.get().map(|now| now + by));
}

/// How long the simulation has been going.
pub(crate) fn elapsed() -> Duration {
    NOW.get().unwrap_or(BEGIN).saturating_sub(BEGIN)
}

/// The database's clock, in milliseconds since 1970.
pub(crate) fn database_ms() -> i64 {
    i64::try_from(BEGIN_UNIX_MS + u64::try_from(elapsed().as_millis()).expect("short")).expect("in this century")
}

/// What the standard library calls in place of the C library's.
// SAFETY: the signature and the meaning are those of POSIX, and no other definition is linked into this program.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
    let Ok(Some(now)) = NOW.try_with(Cell::get) else {
        // SAFETY: the arguments are the caller's, as it means them.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as c_int;
    };
    let now = now + LOOK;
    NOW.set(Some(now));
    let shown = if clock == libc::CLOCK_REALTIME {
        Duration::from_millis(BEGIN_UNIX_MS) + now
    } else {
        now
    };
    let shown =
        libc::timespec { tv_sec: shown.as_secs() as libc::time_t, tv_nsec: libc::c_long::from(shown.subsec_nanos()) };
    // SAFETY: POSIX lets the caller pass a place for the result and nothing else.
    unsafe { time.write(shown) };
    0
}

/// `sqlite3_vfs` of sqlite3.h, version 2 and later.
#[repr(C)]
struct Vfs {
    version: c_int,
    file_size: c_int,
    path_max: c_int,
    next: *mut c_void,
    name: *const c_char,
    data: *mut c_void,
    calls: [*const c_void; 12],
    current_time_ms: extern "C" fn(*mut Vfs, *mut i64) -> c_int,
}

extern "C" fn current_time_ms(_: *mut Vfs, julian_ms: *mut i64) -> c_int {
    let unix_ms = NOW.try_with(Cell::get).ok().flatten().map(|_| database_ms());
    let real = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    // SAFETY: SQLite passes a place for the result.
    unsafe { julian_ms.write(UNIX_EPOCH_JULIAN_MS + unix_ms.unwrap_or_else(real)) };
    0
}

/// Puts [`current_time_ms`] into the SQLite that the ODBC driver uses.
fn patch_sqlite() {
    // SAFETY: the library is kept for the life of the process; the function and the struct are those of its stable C interface, and
    // no connection is open yet that could read the pointer meanwhile.
    unsafe {
        let library = libc::dlopen(c"libsqlite3.so.0".as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        assert!(!library.is_null(), "libsqlite3.so.0 is what the SQLite ODBC driver uses");
        let initialize = libc::dlsym(library, c"sqlite3_initialize".as_ptr());
        let find = libc::dlsym(library, c"sqlite3_vfs_find".as_ptr());
        assert!(!initialize.is_null() && !find.is_null(), "SQLite has these functions");
        let initialize: extern "C" fn() -> c_int = std::mem::transmute(initialize);
        let find: extern "C" fn(*const c_char) -> *mut Vfs = std::mem::transmute(find);
        assert_eq!(initialize(), 0, "SQLite starts");
        let vfs = find(std::ptr::null());
        assert!(!vfs.is_null() && (*vfs).version >= 2, "SQLite has a file system with a clock");
        (*vfs).current_time_ms = current_time_ms;
    }
}
