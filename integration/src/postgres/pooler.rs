//! PgBouncer in front of a server.

use std::fs;
use std::process::{Child, Stdio};

use anyhow::Result;

use super::{PASSWORD, Postgres, give_to_server, server_command};
use crate::guardian::Guardian;
use crate::{port, tools};

/// PgBouncer in front of a server.
pub struct Pooler {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
    _guardian: Guardian,
}

impl Pooler {
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Postgres {
    /// A transaction pooler in front of this server; it ends with the server's folder at the latest.
    /// `None` where there is no PgBouncer.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start_pooler(&self) -> Result<Option<Pooler>> {
        let Some(program) = tools::pgbouncer() else {
            eprintln!("NOT TESTED with a pooler: there is no PgBouncer");
            return Ok(None);
        };
        let folder = tempfile::Builder::new()
            .prefix("lastgood-pooler-")
            .tempdir_in("/tmp")?;
        give_to_server(folder.path(), 0o755)?;
        let (users, config) = (folder.path().join("users"), folder.path().join("config"));
        fs::write(&users, format!("\"postgres\" \"{PASSWORD}\"\n"))?;
        let port = port::free();
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = trust\nauth_file = {}\npool_mode = transaction\nunix_socket_dir =\n",
            self.port,
            users.display()
        );
        fs::write(&config, settings)?;
        for file in [&users, &config] {
            give_to_server(file, 0o644)?;
        }
        let pid_file = folder.path().join("pid");
        let guardian = Guardian::new(&pid_file, folder.path())?;
        let child = server_command(&program)?
            .arg("-q")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        fs::write(&pid_file, format!("{}\n", child.id()))?;
        let pooler = Pooler {
            port,
            child,
            _folder: folder,
            _guardian: guardian,
        };
        crate::wait::until("the pooler", async || {
            Ok(Some(
                tokio::net::TcpStream::connect(("127.0.0.1", port)).await?,
            ))
        })
        .await?;
        Ok(Some(pooler))
    }
}
