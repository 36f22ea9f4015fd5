// A relay that half-closes, without any crate. rustc -O relay.rs && ./relay 127.0.0.1:8080 127.0.0.1:80
use std::ffi::{c_int, c_void};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

// What the crate socket2 has, and the standard library has not.
extern "C" {
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, size: u32) -> c_int;
    fn poll(fds: *mut PollFd, count: u64, timeout: c_int) -> c_int;
}
#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}
const TICK: Duration = Duration::from_secs(1);
const SOL_SOCKET: c_int = 1;
const SO_KEEPALIVE: c_int = 9;
const SO_LINGER: c_int = 13;
const IPPROTO_TCP: c_int = 6;
const TCP_KEEPIDLE: c_int = 4;
const TCP_KEEPINTVL: c_int = 5;

fn set(side: &TcpStream, level: c_int, name: c_int, value: &[c_int]) {
    unsafe { setsockopt(side.as_raw_fd(), level, name, value.as_ptr().cast(), 4 * value.len() as u32) };
}

/// What both threads of a connection know: how many FINs were passed on, and whether it is to be cut.
#[derive(Default)]
struct Shared {
    fins: AtomicU8,
    cut: AtomicBool,
}

/// Joins two connections; each direction is a thread of its own, and the last one out closes.
fn relay(a: TcpStream, b: TcpStream, silence: Duration) -> Result<()> {
    for side in [&a, &b] {
        set(side, SOL_SOCKET, SO_KEEPALIVE, &[1]); // a peer that is gone answers the probe by RST
        set(side, IPPROTO_TCP, TCP_KEEPIDLE, &[15]);
        set(side, IPPROTO_TCP, TCP_KEEPINTVL, &[5]);
        side.set_nodelay(true)?;
        side.set_read_timeout(Some(TICK))?; // a thread that waits looks up now and then
        side.set_write_timeout(Some(TICK))?;
    }
    let (a, b, shared) = (Arc::new(a), Arc::new(b), Arc::new(Shared::default()));
    for (from, to) in [(a.clone(), b.clone()), (b, a)] {
        let shared = shared.clone();
        thread::spawn(move || {
            if pump(&from, &to, &shared, silence).is_err() {
                shared.cut.store(true, SeqCst);
            }
            if shared.cut.load(SeqCst) {
                // Closing by RST: a cut answer never looks complete.
                set(&from, SOL_SOCKET, SO_LINGER, &[1, 0]);
                set(&to, SOL_SOCKET, SO_LINGER, &[1, 0]);
            }
        });
    }
    Ok(())
}

/// Moves one direction to its end, and then watches for the failure of a peer that nobody reads from any more.
fn pump(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared, silence: Duration) -> Result<()> {
    let mut buffer = vec![0; 65536];
    let mut quiet = Duration::ZERO;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                quiet = Duration::ZERO;
                let mut sent = 0;
                while sent < n {
                    match to.write(&buffer[sent..n]) {
                        Ok(some) => sent += some,
                        Err(error) => goes_on(error, shared)?,
                    }
                }
            }
            Err(error) => {
                goes_on(error, shared)?;
                quiet += TICK;
                if shared.fins.load(SeqCst) > 0 && quiet >= silence {
                    return Err(ErrorKind::TimedOut.into()); // the cap on silence
                }
            }
        }
    }
    to.shutdown(Shutdown::Write)?; // pass the FIN on, and nothing else
    shared.fins.fetch_add(1, SeqCst);
    while shared.fins.load(SeqCst) < 2 {
        let mut look = PollFd { fd: from.as_raw_fd(), events: 0, revents: 0 };
        unsafe { poll(&mut look, 1, TICK.as_millis() as c_int) };
        if let Some(error) = from.take_error()? {
            return Err(error);
        }
        goes_on(ErrorKind::WouldBlock.into(), shared)?;
    }
    Ok(())
}

/// Lets a timeout pass unless the other thread wants the connection cut; any other error ends it.
fn goes_on(error: Error, shared: &Shared) -> Result<()> {
    let waited = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted);
    if waited && !shared.cut.load(SeqCst) { Ok(()) } else { Err(error) }
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let listener = TcpListener::bind(&args[1])?;
    for client in listener.incoming() {
        let (client, to) = (client?, args[2].parse().map_err(|_| Error::from(ErrorKind::InvalidInput))?);
        thread::spawn(move || match TcpStream::connect_timeout(&to, Duration::from_secs(5)) {
            Ok(server) => relay(client, server, Duration::from_secs(300)),
            Err(error) => {
                set(&client, SOL_SOCKET, SO_LINGER, &[1, 0]);
                Err(error)
            }
        });
    }
    Ok(())
}
