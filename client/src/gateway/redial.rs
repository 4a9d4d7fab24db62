//! The next connection of a pipe that lost its own, with a certificate that is still good.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use postern_proto::gateway::message::JOIN_EXPORTER;

use super::{Access, Gateway};
use crate::pipe::line::{Dialled, Redial};
use crate::transport::Connection;

impl Redial<Connection> for Gateway {
    fn dial(&self) -> BoxFuture<'static, Result<Dialled<Connection>, String>> {
        let access = self.current();
        let me = self.me.clone();
        Box::pin(async move {
            match access.dialer.pipe().await {
                Ok(stream) => match exporter(&stream) {
                    Some(exporter) => Ok(Dialled { stream, exporter }),
                    None => Err("TLS gave no exporter".to_owned()),
                },
                Err(error) => {
                    if error.wants_new_certificate()
                        && let Some(gateway) = me.upgrade()
                    {
                        gateway.renew_quietly(&access).await?;
                    }
                    Err(error.to_string())
                }
            }
        })
    }

    fn renew(&self) -> BoxFuture<'static, Result<(), String>> {
        let (access, me) = (self.current(), self.me.clone());
        Box::pin(async move {
            match me.upgrade() {
                Some(gateway) => gateway.renew_quietly(&access).await,
                None => Ok(()),
            }
        })
    }
}

impl Gateway {
    async fn renew_quietly(&self, refused: &Arc<Access>) -> Result<(), String> {
        let renewed = self.renew_by(&*self.quiet, refused).await;
        renewed.map_err(|error| error.to_string())
    }
}

/// What binds a proof to this very TLS connection.
pub(super) fn exporter(connection: &Connection) -> Option<[u8; 32]> {
    connection
        .get_ref()
        .1
        .export_keying_material([0; 32], JOIN_EXPORTER, None)
        .ok()
}
