//! The two ends of a TCP connection, and which user of this machine has the client's end. A browser sends its cookies to
//! every port of a host, so that a program of another user at another port learns them. Only the kernel can tell that the
//! request with a cookie comes from a program of the same user.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpStream;

/// The kernel's tables of the connections in the network namespace of this process (proc_net(5)).
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// The state of an open connection in these tables. In most other states the kernel no longer knows the user, and
/// writes 0.
const ESTABLISHED: &str = "01";

/// The ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    client: SocketAddr,
    server: SocketAddr,
}

/// Returns an address of IPv4 as one, also when a socket of IPv6 has it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Ends {
    /// Returns the ends of a connection that was accepted; `None` when it has ended.
    pub(super) fn of(stream: &TcpStream) -> Option<Self> {
        let (client, server) = (stream.peer_addr().ok()?, stream.local_addr().ok()?);
        Some(Self { client: canonical(client), server: canonical(server) })
    }

    /// Whether the client is a program on this machine.
    pub(super) fn are_on_this_machine(&self) -> bool {
        self.client.ip().is_loopback() || self.client.ip() == self.server.ip()
    }

    /// Returns the user whose program has the client's end; `None` when the kernel does not tell.
    pub(super) async fn user(self) -> Option<u32> {
        // A machine without IPv6 has no second table.
        let search =
            move || TABLES.iter().find_map(|table| self.user_in(&std::fs::read_to_string(table).ok()?));
        tokio::task::spawn_blocking(search).await.ok().flatten()
    }

    fn user_in(self, table: &str) -> Option<u32> {
        table.lines().skip(1).find_map(|line| {
            let columns: Vec<_> = line.split_ascii_whitespace().take(10).collect();
            let &[_, local, remote, ESTABLISHED, _, _, _, uid, _, inode] = columns.as_slice() else {
                return None;
            };
            let is_it = address(local) == Some(self.client) && address(remote) == Some(self.server);
            // A socket that no program has any more, or not yet, has no inode.
            if is_it && inode != "0" { uid.parse().ok() } else { None }
        })
    }
}

/// Reads an address as these tables write it: words of 32 bits in the byte order of the machine, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?))
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_kernel_tells_whose_connection_it_is_while_it_is_open() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(listen).await else {
                assert_eq!(listen, "[::1]:0", "a machine may have no IPv6");
                continue;
            };
            let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            let ends = Ends::of(&server).unwrap();
            assert!(ends.are_on_this_machine());
            assert_eq!(ends.user().await, Some(nix::unistd::geteuid().as_raw()));
            // The other direction is another connection.
            let reversed = Ends { client: ends.server, server: SocketAddr::new(ends.client.ip(), 1) };
            assert_eq!(reversed.user().await, None);
            drop(client);
        }
    }

    #[test]
    fn a_connection_that_has_ended_is_nobodys() {
        const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        let ends =
            Ends { client: "127.0.0.1:8080".parse().unwrap(), server: "127.0.0.1:9774".parse().unwrap() };
        let row = |state: &str, inode: &str| {
            let word = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
            let local = word([127, 0, 0, 1]);
            format!(
                "{HEAD}   0: {local}:1F90 {local}:262E {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 0 20\n"
            )
        };
        assert_eq!(ends.user_in(&row("01", "4711")), Some(1000));
        assert_eq!(ends.user_in(&row("06", "0")), None);
        assert_eq!(ends.user_in(&row("01", "0")), None);
        assert_eq!(ends.user_in(HEAD), None);
        assert_eq!(ends.user_in("what is this\n0: x y 01 a b c 0 0 1\n"), None);
    }
}
