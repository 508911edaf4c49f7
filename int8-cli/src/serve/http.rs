//! Connections: HTTP/1.1 on one thread of tokio, with limits, and an end that lets running requests finish.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};

use super::app::App;

/// Connections at once.
const MOST_CONNECTIONS: usize = 1024;

/// Time for the head of a request to arrive, and for a connection to be idle.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;

/// Serves until SIGINT or SIGTERM; then requests that run get `grace`, or until a second signal.
///
/// # Errors
/// When the listener or the runtime fails.
pub(super) fn serve(listener: TcpListener, app: Arc<App>, grace: Duration) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(run(listener, Arc::clone(&app), grace));
    app.stop(true);
    // What parses a body still is of no use now.
    runtime.shutdown_background();
    result
}

async fn run(listener: TcpListener, app: Arc<App>, grace: Duration) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut signals = Signals::new()?;
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let (draining, drain) = watch::channel(false);
    // Closed when the last connection is.
    let (open, mut all_closed) = mpsc::channel::<Infallible>(1);
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = signals.next() => break,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, say: others may be closed soon.
                app.journal.log(&json!({"event": "accept", "error": error.to_string()}));
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // A token is sent when it is there.
        let _ = stream.set_nodelay(true);
        let (app, mut drain, open) = (Arc::clone(&app), drain.clone(), open.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let app = Arc::clone(&app);
                async move { Ok::<_, Infallible>(app.respond(request, client).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIME)
                .max_buf_size(HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = connection.as_mut() => Some(ended),
                _ = drain.wait_for(|draining| *draining) => None,
            };
            // How a connection ended is the client's affair.
            if ended.is_none() {
                connection.as_mut().graceful_shutdown();
                let _ = connection.await;
            }
            drop((place, open));
        });
    }
    drop((listener, open));
    app.journal.log(&json!({"event": "drain", "seconds": grace.as_secs()}));
    app.stop(false);
    draining.send_replace(true);
    tokio::select! {
        _ = all_closed.recv() => {}
        () = tokio::time::sleep(grace) => app.journal.log(&json!({"event": "drain", "error": "requests were cut off"})),
        () = signals.next() => {}
    }
    Ok(())
}

/// SIGINT and SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(not(unix))]
    #[expect(clippy::unnecessary_wraps, reason = "installing handlers can fail elsewhere")]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for one of them.
    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        let _ = tokio::signal::ctrl_c().await;
    }
}
