//! `hotslot ui`: opens the page for the user who runs it, through the unix socket of the service.

use hotslot_api::http::OwnPage;
use serde_json::json;
use tokio::net::TcpListener;

use crate::address::Address;
use crate::client::Client;
use crate::exit::Exit;
use crate::output::{self, Output};
use crate::tls::Tls;

/// Serves the page of a service until the program is interrupted.
///
/// # Errors
/// There is no page of hotslot at the address, or no port of loopback can be listened on.
pub(crate) async fn run(address: Address, tls: &Tls, output: Output) -> anyhow::Result<Exit> {
    Client::with_token(address.clone(), tls, None)?.expect_page().await?;
    let socket = match address {
        Address::Unix(socket) => socket,
        Address::Http(_) => {
            let link = format!("{address}/ui");
            print(output, &link, &format!("The page is at {link}. It asks you to sign in.\n"))?;
            return Ok(Exit::Done);
        }
    };
    let page = OwnPage::at(TcpListener::bind("127.0.0.1:0").await?, socket)?;
    let link = page.link();
    let text = format!(
        "Open this link in a browser on this machine. It works once, and the page acts as you until you\n\
         press Ctrl-C.\n\n  {link}\n"
    );
    print(output, &link, &text)?;
    tokio::select! {
        ended = page.serve() => match ended {},
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(Exit::Done)
}

/// Prints the link: in a text for people, or alone for programs.
fn print(output: Output, link: &str, text: &str) -> anyhow::Result<()> {
    if output.is_data() {
        output::data(output, &json!({ "url": link }))
    } else if output.is_names() {
        output::print(&format!("{link}\n"))
    } else {
        output::print(text)
    }
}
