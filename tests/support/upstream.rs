//! A small HTTP server that jobs are posted to: it answers as the test says, and counts.
//!
//! Its own, not `tiny_http`: that one now and then leaves one of many new connections without a thread.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// One attempt at a job.
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) attempt: u32,
    pub(crate) job: String,
    pub(crate) token: i64,
}

/// What the server answers: a status, and `Retry-After` in seconds.
pub(crate) type Reply = (u16, Option<u32>);

pub(crate) struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    reply: Box<dyn Fn(&Call) -> Reply + Send + Sync>,
    /// How often each attempt at each job came.
    calls: Mutex<HashMap<(String, u32), u32>>,
    is_over: AtomicBool,
}

impl Upstream {
    /// Answers every call by `reply`.
    pub(crate) fn start(reply: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared =
            Arc::new(Shared { reply: Box::new(reply), calls: Mutex::default(), is_over: AtomicBool::new(false) });
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let server = Arc::clone(&server);
                // Ends when the caller closes the connection, as it does when it is killed.
                thread::spawn(move || server.serve(&stream));
            }
        });
        Upstream { address, shared }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How often the same attempt at the same job came at most, and how many attempts came in all.
    pub(crate) fn repeats_and_attempts(&self) -> (u32, usize) {
        let calls = self.shared.calls.lock().expect("no panic");
        (calls.values().copied().max().unwrap_or(0), calls.len())
    }
}

impl Shared {
    /// Answers one request after the other, until there are no more.
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Ok(Some(call)) = read_call(&mut reader) {
            *self.calls.lock().expect("no panic").entry((call.job.clone(), call.attempt)).or_default() += 1;
            let (status, retry_after) = (self.reply)(&call);
            let retry_after = retry_after.map(|seconds| format!("Retry-After: {seconds}\r\n")).unwrap_or_default();
            let answer = format!("HTTP/1.1 {status} so\r\n{retry_after}Content-Length: 16\r\n\r\nas the test says");
            let mut writer = stream;
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection.
fn read_call(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Call>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut body = vec![0; header("content-length").parse().expect("every call has a body of known length")];
    reader.read_exact(&mut body)?;
    let attempt = header("trilane-attempt").parse().expect("every call tells its attempt");
    let token = header("trilane-token").parse().expect("every call tells its token");
    Ok(Some(Call { path, attempt, job: header("trilane-job-id"), token }))
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        // Wakes the thread that waits for connections. If it is gone already, there is nobody to wake.
        let _ = TcpStream::connect(self.address);
    }
}
