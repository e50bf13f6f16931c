//! A client that sends exactly the bytes it is given, and what a process looks like from outside.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::trilane::SOON;

/// One connection.
pub(crate) struct Raw(TcpStream);

impl Raw {
    pub(crate) fn connect(address: &str) -> Raw {
        Raw::try_connect(address).expect("connected")
    }

    pub(crate) fn try_connect(address: &str) -> io::Result<Raw> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Raw(stream))
    }

    /// Fails where the server has closed the connection.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Says that nothing more comes.
    pub(crate) fn end(&mut self) {
        let _ = self.0.shutdown(Shutdown::Write); // OK: the server may have closed it
    }

    /// Waits for exactly these bytes.
    pub(crate) fn wait_for(&mut self, expected: &[u8]) {
        let mut bytes = vec![0; expected.len()];
        self.0.read_exact(&mut bytes).expect("it comes");
        assert_eq!(bytes, expected, "{}", String::from_utf8_lossy(&bytes));
    }

    /// Everything until the server closes the connection, which it must.
    pub(crate) fn read_all(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return bytes,
                Ok(count) => bytes.extend(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return bytes,
                Err(error) => panic!("the server neither answers nor closes: {error}"),
            }
        }
    }

    /// Whether the server closes it within `limit`; what it sends is dropped.
    pub(crate) fn is_closed_within(&mut self, limit: Duration) -> bool {
        self.0.set_read_timeout(Some(limit)).expect("a time-out");
        let mut buffer = [0; 1 << 10];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    }
}

/// The status codes of the answers in `bytes`, in their order.
pub(crate) fn statuses(bytes: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(bytes);
    // The first stands at the start, the others behind a body without a line end.
    text.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)?.parse().ok()).collect()
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    pub(crate) threads: u64,
    pub(crate) memory_mib: u64,
    pub(crate) file_handles: usize,
}

/// What process `pid` takes now.
pub(crate) fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux tells it");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    Usage {
        threads: number("Threads:"),
        memory_mib: number("VmRSS:") >> 10,
        file_handles: fs::read_dir(format!("/proc/{pid}/fd")).expect("it is ours").count(),
    }
}
