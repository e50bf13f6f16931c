//! The HTTP library alone, as it is published: an empty 200 to whatever comes, the denominator of W2.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bare_http::{Response, Server};

/// As many as Trilane's default.
const THREADS: usize = 32;

pub(crate) struct BareHttp {
    server: Arc<Server>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl BareHttp {
    pub(crate) fn start() -> Result<BareHttp, Box<dyn std::error::Error>> {
        let server = Arc::new(Server::http("127.0.0.1:0").map_err(|error| error.to_string())?);
        let is_over = Arc::new(AtomicBool::new(false));
        let threads = (0..THREADS)
            .map(|_| {
                let (server, is_over) = (Arc::clone(&server), Arc::clone(&is_over));
                thread::spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let Ok(Some(mut request)) = server.recv_timeout(Duration::from_millis(100)) else { continue };
                        // Read, as a server must; what goes wrong with a client is seen at the client.
                        let _ = std::io::copy(request.as_reader(), &mut std::io::sink());
                        let _ = request.respond(Response::empty(200));
                    }
                })
            })
            .collect();
        Ok(BareHttp { server, is_over, threads })
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.server.server_addr().to_ip()
    }
}

impl Drop for BareHttp {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was printed when it happened.
            let _ = thread.join();
        }
    }
}
