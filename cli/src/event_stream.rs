//! The events of the service as they happen, read as Server-Sent Events (WHATWG HTML, section 9.2).

use std::pin::Pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use reqwest::Body;
use sse_stream::{Error, SseStream};

use crate::client::Client;
use crate::exit::Failure;

/// The longest silence on an open stream. The service sends at least a comment with an id more often than this.
const SILENCE: Duration = Duration::from_secs(60);

/// An open stream of Server-Sent Events.
pub(crate) struct EventStream<'a> {
    client: &'a Client,
    messages: Pin<Box<SseStream<Body>>>,
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
        Ok(Self::of(client, response.into()))
    }

    fn of(client: &'a Client, body: Body) -> Self {
        Self { client, messages: Box::pin(SseStream::new(body)) }
    }

    /// Returns the next message, or `None` when the service has closed the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Message>, Failure> {
        match tokio::time::timeout(SILENCE, self.messages.try_next()).await {
            Ok(Ok(message)) => Ok(message.map(|message| Message {
                id: message.id.unwrap_or_default(),
                data: message.data.unwrap_or_default(),
            })),
            Ok(Err(Error::Body(error))) => Err(match error.downcast_ref::<reqwest::Error>() {
                Some(error) => self.client.unreachable(error),
                None => self.client.strange(&error.to_string()),
            }),
            Ok(Err(error)) => Err(self.client.strange(&error.to_string())),
            Err(_) => Err(self.client.strange("it has sent nothing for too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    #[tokio::test]
    async fn only_complete_messages_are_returned() {
        let client = Client::new(Address::Unix("/nowhere".into())).unwrap();
        let body = ": \nid: 3\n\nid: 4\nevent: device.status\ndata: {\"id\": 4}\n\nid: 5\nda";
        let mut stream = EventStream::of(&client, body.into());
        let expected = |id: &str, data: &str| Some(Message { id: id.into(), data: data.into() });
        assert_eq!(stream.next().await.unwrap(), expected("3", ""));
        assert_eq!(stream.next().await.unwrap(), expected("4", "{\"id\": 4}"));
        assert_eq!(stream.next().await.unwrap(), None);
    }
}
