//! Free TCP ports, below the range from which the kernel picks client ports, so that a server that is
//! stopped finds its port free when it starts again.

use std::net::TcpListener;

use rand::Rng;

/// A port that nobody listens on now. Another process may take it before the caller does: callers retry.
pub(crate) fn free() -> u16 {
    let mut rng = rand::rng();
    loop {
        let port = rng.random_range(10_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
