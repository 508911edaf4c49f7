//! How the processes of a group find each other: the first one listens at an address that all know; each tells it where it listens
//! itself, and connects to those before it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};

use super::{Group, Link};
use crate::Error;
use crate::convert::index;

/// Which process of a group this is, and where the first one is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// Number of this process.
    pub process: usize,
    /// Their number.
    pub processes: usize,
    /// Host and port on which the first process listens.
    pub address: String,
    /// How long to wait for the others.
    pub timeout: Duration,
}

/// First word of every greeting; the last letter is the version of what follows.
const GREETING: [u8; 8] = *b"int8tp-1";
/// How long a caller has to say who it is, once it is connected.
const GREETING_TIME: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// A peer whose machine or network is gone is given up after 3 s of silence and three probes, 2 s apart.
const SILENCE: Duration = Duration::from_secs(3);
const PROBES: (u32, Duration) = (3, Duration::from_secs(2));

/// What a process says when it connects.
#[derive(Debug, Clone, Copy)]
struct Greeting {
    process: u32,
    processes: u32,
    /// Where it listens for those behind it.
    port: u32,
}

impl Greeting {
    fn send(self, mut stream: &TcpStream) -> io::Result<()> {
        let words = [self.process, self.processes, self.port].map(u32::to_le_bytes).concat();
        stream.write_all(&[&GREETING[..], &words].concat())
    }

    /// From a caller that may be anyone.
    fn receive(mut stream: &TcpStream) -> io::Result<Self> {
        let mut bytes = [0; 20];
        stream.set_read_timeout(Some(GREETING_TIME))?;
        stream.read_exact(&mut bytes)?;
        stream.set_read_timeout(None)?;
        if bytes[..8] != GREETING {
            return Err(io::Error::other("another program, or another version of this one"));
        }
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Ok(Self { process: word(8), processes: word(12), port: word(16) })
    }
}

impl Group {
    /// Waits until all processes are connected to each other.
    ///
    /// # Errors
    /// [`Error::Process`] when one does not come, or says that it belongs to another group; [`Error::Input`] for a number that
    /// is none of theirs.
    pub fn connect(options: &GroupOptions) -> Result<Self, Error> {
        let GroupOptions { process, processes, address, timeout } = options;
        if process >= processes {
            return Err(Error::Input(format!("process {process} of {processes}")));
        }
        if *processes == 1 {
            return Ok(Self::alone());
        }
        let deadline = Instant::now() + *timeout;
        let failed = |what: &str| {
            let what = format!("process {process} of {processes}: {what}");
            move |error: io::Error| Error::Process(format!("{what}: {error}"))
        };
        let mut links: Vec<Option<Link>> = (0..*processes).map(|_| None).collect();
        let addresses: Vec<SocketAddr> =
            address.to_socket_addrs().map_err(failed(&format!("address {address}")))?.collect();
        let own = Greeting { process: word(*process)?, processes: word(*processes)?, port: 0 };
        if *process == 0 {
            let listener =
                TcpListener::bind(&addresses[..]).map_err(failed(&format!("cannot listen at {address}")))?;
            let mut ports = vec![(IpAddr::from([0, 0, 0, 0]), 0); *processes];
            for (greeting, ip) in accept(&listener, own, 1, &mut links, deadline)? {
                ports[index(greeting.process)] = (ip, greeting.port);
            }
            let table: String = ports.iter().map(|(ip, port)| format!("{ip} {port}\n")).collect();
            let group = Self::of(0, links);
            group.send_to_all(table.as_bytes())?;
            return Ok(group);
        }
        let first = reach(&addresses, deadline)
            .map_err(failed(&format!("process 0 does not answer at {address}")))?;
        let ip = first.local_addr().map_err(failed("its own address"))?.ip();
        let listener = TcpListener::bind((ip, 0)).map_err(failed(&format!("cannot listen at {ip}")))?;
        let port = listener.local_addr().map_err(failed("its own address"))?.port();
        Greeting { port: port.into(), ..own }.send(&first).map_err(failed("greeting process 0"))?;
        links[0] = Some(Link::new(first).map_err(failed("connection to process 0"))?);
        let waited = "process 0 ended before all had come";
        let table = links[0].as_ref().map_or(Ok(Vec::new()), Link::receive).map_err(failed(waited))?;
        let table = String::from_utf8_lossy(&table);
        for (other, line) in table.lines().enumerate().take(*process).skip(1) {
            let what = format!("process {other} does not answer at {line}");
            let address = line
                .split_once(' ')
                .and_then(|(ip, port)| Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?)));
            let address = address.ok_or_else(|| Error::Process(what.clone()))?;
            let stream = reach(&[address], deadline).map_err(failed(&what))?;
            own.send(&stream).map_err(failed(&what))?;
            links[other] = Some(Link::new(stream).map_err(failed(&what))?);
        }
        accept(&listener, own, process + 1, &mut links, deadline)?;
        Ok(Self::of(*process, links))
    }
}

/// Takes the calls of all processes from `first` on. What is none of them is sent away; one that belongs to another group is an
/// error.
fn accept(
    listener: &TcpListener,
    own: Greeting,
    first: usize,
    links: &mut [Option<Link>],
    deadline: Instant,
) -> Result<Vec<(Greeting, IpAddr)>, Error> {
    let failed = |error: io::Error| Error::Process(format!("waiting for other processes: {error}"));
    listener.set_nonblocking(true).map_err(failed)?;
    let mut greetings = Vec::new();
    while let Some(missing) = (first..links.len()).find(|process| links[*process].is_none()) {
        let (stream, caller) = match listener.accept() {
            Ok(call) => call,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(Error::Process(format!("process {missing} of {} did not come", links.len())));
                }
                thread::sleep(PAUSE);
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        stream.set_nonblocking(false).map_err(failed)?;
        let Ok(greeting) = Greeting::receive(&stream) else { continue };
        let process = index(greeting.process);
        if greeting.processes != own.processes || process < first {
            return Err(Error::Process(format!(
                "{caller} came as process {process} of {}, to process {} of {}: another group at the same address?",
                greeting.processes, own.process, own.processes
            )));
        }
        match links.get_mut(process) {
            Some(link @ None) => *link = Some(Link::new(stream).map_err(failed)?),
            _ => {
                return Err(Error::Process(format!(
                    "{caller} came as process {process}, which is there already"
                )));
            }
        }
        greetings.push((greeting, caller.ip()));
    }
    Ok(greetings)
}

/// Connects to one of these addresses, where someone may listen soon.
fn reach(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(addresses) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

impl Link {
    fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(SILENCE).with_interval(PROBES.1).with_retries(PROBES.0);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self(stream))
    }
}

fn word(number: usize) -> Result<u32, Error> {
    u32::try_from(number).map_err(|_| Error::Input(format!("{number} processes")))
}
