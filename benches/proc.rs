//! What the kernel counts of a process.

use std::fs;

/// Seconds of processor time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu(pub(crate) f64);

/// Of one process, all its threads.
pub(crate) fn cpu_of(pid: u32) -> Cpu {
    stat(pid).map_or(Cpu::default(), |fields| seconds(&fields[11..13]))
}

/// Of a process and its children, those that ended included.
pub(crate) fn cpu_of_family(parent: u32) -> Cpu {
    let own = stat(parent).map_or(Cpu::default(), |fields| seconds(&fields[11..15]));
    let processes = fs::read_dir("/proc").into_iter().flatten().map_while(Result::ok);
    let pids = processes.filter_map(|process| process.file_name().to_string_lossy().parse().ok());
    let children = pids.filter_map(stat).filter(|fields| fields[1] == parent.to_string());
    Cpu(own.0 + children.map(|fields| seconds(&fields[11..13]).0).sum::<f64>())
}

pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    stat(pid)?[1].parse().ok()
}

/// The most that was ever resident, in MiB.
pub(crate) fn peak_memory_of(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: f64 = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or_default();
    kib / 1024.0
}

/// The fields after the name, which may hold blanks: state, parent, …
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<String> = text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect();
    (fields.len() > 15).then_some(fields)
}

fn seconds(ticks: &[String]) -> Cpu {
    // SAFETY: asks for a constant.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    let ticks: u32 = ticks.iter().filter_map(|ticks| ticks.parse::<u32>().ok()).sum();
    #[expect(clippy::cast_precision_loss, reason = "100 on every Linux")]
    Cpu(f64::from(ticks) / per_second as f64)
}
