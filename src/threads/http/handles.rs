//! What the system gives: file handles, as many as connections need and a reserve for everything else; and memory, given back after a
//! flood.

use std::io;

/// Raises the process's limit of file handles to what `connections_max` connections and `reserve` other handles need, as far as the
/// system lets it. Returns how many connections there may be: fewer where the limit is lower, but at least half of it, and one.
///
/// The limit is raised no further than that: commands of handlers inherit it, and some of them visit every handle there may be.
pub fn raise_to(connections_max: usize, reserve: usize) -> usize {
    let wanted = connections_max.saturating_add(reserve);
    let Ok(limit) = raised(wanted as u64) else { return connections_max };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    connections_max.min(limit.saturating_sub(reserve).max(limit / 2)).max(1)
}

/// Raises the limit to `wanted`, or as near as may be. Returns what it is then.
fn raised(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value of the type that the call fills in.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    if before >= wanted {
        return Ok(before);
    }
    limit.rlim_cur = wanted.min(limit.rlim_max);
    // SAFETY: the pointer is to a live value, which the call only reads.
    let is_raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    Ok(if is_raised { limit.rlim_cur } else { before })
}

/// Gives memory that is free back to the system. The allocator keeps what each of many threads used, and a flood would leave its mark.
pub(super) fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a call without pointers, which any thread may make.
    unsafe {
        libc::malloc_trim(0)
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_a_reserve_but_get_at_least_half() {
        let limit = usize::try_from(raised(0).expect("a limit")).expect("a number");

        assert_eq!(raise_to(1, 1), 1);
        assert_eq!(raise_to(0, 0), 1);
        assert!(raise_to(usize::MAX, 10) >= limit.saturating_sub(10).min(limit / 2));
    }
}
