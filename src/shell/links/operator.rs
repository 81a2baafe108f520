//! An operator's connection to a fleet's broker: publishes bundles and follows what nodes say.

use bytes::Bytes;
use rumqttc::{
    AsyncClient, Event, EventLoop, Packet, PublishOptions, PublishResult, QoS, SubscribeReasonCode,
};
use tokio::sync::mpsc;

use super::mqtt::is_taken;
use super::sign_in::{LinkError, options};
use crate::config::Mqtt;
use crate::limits;

/// A message that was heard.
#[derive(Debug, Clone)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
}

/// A connection. It is not made anew when it is lost: whoever watches is told.
pub struct Operator {
    client: AsyncClient,
    heard: mpsc::Receiver<Result<Message, LinkError>>,
    pump: tokio::task::JoinHandle<()>,
}

impl Operator {
    /// Connects under the client's name `id`.
    ///
    /// # Errors
    /// What is wrong with the settings, or what the broker said.
    pub async fn connect(settings: &Mqtt, id: &str) -> Result<Self, LinkError> {
        let options = options(settings, id)?;
        let (client, mut packets) =
            AsyncClient::builder(options).capacity(limits::LINK_REQUESTS).build();
        let admitted = async {
            loop {
                if let Event::Incoming(Packet::ConnAck(_)) = packets.poll().await? {
                    return Ok::<(), LinkError>(());
                }
            }
        };
        tokio::time::timeout(limits::LINK_CONNECT, admitted)
            .await
            .map_err(|_| LinkError::Silent)??;
        let (door, heard) = mpsc::channel(limits::LINK_HEARD);
        let pump = tokio::spawn(pump(packets, door));
        Ok(Self { client, heard, pump })
    }

    /// Publishes a retained message, for those who come later too. An empty one takes it back.
    ///
    /// # Errors
    /// Where the connection is lost or the broker does not allow it.
    pub async fn publish(&self, topic: &str, payload: Bytes) -> Result<(), LinkError> {
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        let sent = self.client.publish_tracked(topic.to_owned(), payload, options).await;
        let answer = sent.map_err(lost)?.wait_async().await.map_err(lost)?;
        match answer {
            PublishResult::Qos1(ack) if !is_taken(ack.reason) => {
                Err(LinkError::NotAllowed(format!("to write to {topic} ({:?})", ack.reason)))
            }
            PublishResult::Qos0Flushed
            | PublishResult::Qos1(_)
            | PublishResult::Qos2Completed(_)
            | PublishResult::Qos2PubRecRejected(_) => Ok(()),
        }
    }

    /// Follows topics.
    ///
    /// # Errors
    /// Where one is no filter, the connection is lost or the broker does not allow it.
    pub async fn follow(&self, filters: &[String]) -> Result<(), LinkError> {
        for filter in filters {
            let asked = self.client.subscribe_tracked(filter.clone(), QoS::AtLeastOnce).await;
            let answer = asked.map_err(lost)?.wait_async().await.map_err(lost)?;
            let taken =
                |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
            if !answer.return_codes.iter().all(taken) {
                return Err(LinkError::NotAllowed(format!("to listen to {filter}")));
            }
        }
        Ok(())
    }

    /// The next message. Nothing is lost where the future is dropped.
    ///
    /// # Errors
    /// Where the connection is lost.
    pub async fn next(&mut self) -> Result<Message, LinkError> {
        self.heard.recv().await.unwrap_or(Err(LinkError::Stopped))
    }

    /// Takes leave of the broker.
    pub async fn close(mut self) {
        if self.client.disconnect().await.is_ok() {
            // What is still in flight may be refused: it was acknowledged, or nobody waited for it.
            self.heard.close();
            let _ = tokio::time::timeout(limits::LINK_FAREWELL, &mut self.pump).await;
        }
        self.pump.abort();
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn pump(mut packets: EventLoop, door: mpsc::Sender<Result<Message, LinkError>>) {
    loop {
        let message = match packets.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => {
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                Ok(Message { topic, payload: publish.payload })
            }
            Ok(Event::Incoming(_) | Event::Outgoing(_) | Event::Auth(_)) => continue,
            Err(error) => Err(error.into()),
        };
        let lost = message.is_err();
        // Nobody may listen any more; a connection that takes its leave is still moved.
        let _ = door.send(message).await;
        if lost {
            return;
        }
    }
}

fn lost(error: impl std::fmt::Display) -> LinkError {
    LinkError::Connection(error.to_string())
}
