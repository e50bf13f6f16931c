//! A way to a server that a test can cut, as a network does.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Listens on a port of its own, and passes on what comes to the server.
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    server: String,
    is_cut: AtomicBool,
    is_over: AtomicBool,
    // Both ends of every connection so far.
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// To the server at `server`, host and port.
    pub(crate) fn start(server: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (is_cut, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let shared = Arc::new(Shared { server, is_cut, is_over, streams: Mutex::default() });
        let proxy = Arc::clone(&shared);
        thread::spawn(move || {
            let mut streams = listener.incoming().map_while(Result::ok);
            while let Some(client) = streams.next().filter(|_| !proxy.is_over.load(Ordering::SeqCst)) {
                // A connection that cannot be passed on is closed.
                let _ = proxy.pass_on(&client);
            }
        });
        Proxy { address, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Closes every connection, and each that is made from now on.
    pub(crate) fn cut(&self) {
        self.shared.is_cut.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }

    pub(crate) fn mend(&self) {
        self.shared.is_cut.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn pass_on(&self, client: &TcpStream) -> io::Result<()> {
        let mut streams = self.streams.lock().expect("no panic");
        if self.is_cut.load(Ordering::SeqCst) {
            return client.shutdown(Shutdown::Both);
        }
        let server = TcpStream::connect(&self.server)?;
        for (from, to) in [(client, &server), (&server, client)] {
            let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
            to.set_nodelay(true)?;
            thread::spawn(move || {
                // Ends with either side; then the other has nothing more to say either.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Both);
            });
        }
        streams.extend([client.try_clone()?, server]);
        Ok(())
    }

    fn close_all(&self) {
        for stream in self.streams.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both); // It may be closed already.
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address);
    }
}
