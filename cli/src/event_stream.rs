//! The events of the service as they happen, read as Server-Sent Events (WHATWG HTML, section 9.2).

use std::time::Duration;

use reqwest::Response;

use crate::client::Client;
use crate::exit::Failure;

/// The longest silence on an open stream. The service sends at least a comment more often than this.
const SILENCE: Duration = Duration::from_secs(60);

/// An open stream of Server-Sent Events.
pub(crate) struct EventStream<'a> {
    client: &'a Client,
    response: Response,
    /// The bytes that arrived after the last complete message.
    buffer: Vec<u8>,
}

/// One message of the stream. A field that the message does not have is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) data: String,
}

impl<'a> EventStream<'a> {
    /// Opens the stream of the events that match `query`, after the event with the id `last` where there is one.
    pub(crate) async fn open(
        client: &'a Client,
        query: &str,
        last: Option<&str>,
    ) -> Result<EventStream<'a>, Failure> {
        let response = client.events(query, last).await?;
        Ok(Self { client, response, buffer: Vec::new() })
    }

    /// Returns the next message, or `None` when the service has closed the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Failure> {
        loop {
            if let Some(message) = message(&mut self.buffer) {
                return Ok(Some(message));
            }
            let chunk = tokio::time::timeout(SILENCE, self.response.chunk()).await;
            match chunk {
                Ok(Ok(Some(bytes))) => self.buffer.extend_from_slice(&bytes),
                Ok(Ok(None)) => return Ok(None),
                Ok(Err(error)) => return Err(self.client.unreachable(&error)),
                Err(_) => return Err(self.client.strange("it has sent nothing for too long")),
            }
        }
    }
}

/// Removes the first complete message from the buffer and returns it.
fn message(buffer: &mut Vec<u8>) -> Option<Message> {
    let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
    let rest = buffer.split_off(end + 2);
    let text = String::from_utf8_lossy(buffer).into_owned();
    *buffer = rest;
    let mut message = Message::default();
    for line in text.lines() {
        match line.split_once(": ") {
            Some(("id", id)) => message.id = id.to_owned(),
            Some(("data", data)) => message.data += data,
            Some(_) | None => {}
        }
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_messages_are_taken_from_the_buffer() {
        let mut buffer = b": \nid: 3\n\nid: 4\nevent: device.status\ndata: {\"id\": 4}\n\nid: 5\nda".to_vec();
        let expected = |id: &str, data: &str| Some(Message { id: id.into(), data: data.into() });
        assert_eq!(message(&mut buffer), expected("3", ""));
        assert_eq!(message(&mut buffer), expected("4", "{\"id\": 4}"));
        assert_eq!(message(&mut buffer), None);
        buffer.extend(b"ta: {}\n\n");
        assert_eq!(message(&mut buffer), expected("5", "{}"));
        assert_eq!(buffer, b"");
    }
}
