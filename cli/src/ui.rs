//! `hotslot ui`: opens the page for the user who runs it, through the unix socket of the service.

use hotslot_api::http::OwnPage;
use tokio::net::TcpListener;

use crate::address::Address;
use crate::exit::Exit;
use crate::output;

/// Serves the page of a service until the program is interrupted.
///
/// # Errors
/// No port of loopback can be listened on.
pub(crate) async fn run(address: Address) -> anyhow::Result<Exit> {
    let socket = match address {
        Address::Unix(socket) => socket,
        Address::Http(_) => {
            output::print(&format!("The page is at {address}/ui. Sign in there with a token.\n"))?;
            return Ok(Exit::Done);
        }
    };
    if let Err(error) = std::os::unix::net::UnixStream::connect(&socket) {
        let advice = Address::Unix(socket.clone()).advice(Some(error.kind()));
        anyhow::bail!("cannot connect to unix:{}: {error}; {advice}", socket.display());
    }
    let page = OwnPage::at(TcpListener::bind("127.0.0.1:0").await?, socket)?;
    output::print(&format!(
        "Open this link in a browser on this machine. It works once, and the page acts as you until you press Ctrl-C.\n\n  \
         {}\n",
        page.link()
    ))?;
    tokio::select! {
        ended = page.serve() => match ended {},
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(Exit::Done)
}
