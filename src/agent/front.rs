//! What the agent does for front ends that are block devices.

use std::path::Path;

use serde_json::Value;

use super::plan::Plan;
use super::protocol::ErrorReply;
use super::view::ResourceView;

/// A data plane has told something.
pub fn on_notice(_resource: &str, _socket: &Path, _records: &Path, _notice: &Value) {}

/// Makes sure that nothing uses the devices of a resource that shall stop being primary.
pub async fn release(_plan: &Plan, _view: &ResourceView) -> Result<(), ErrorReply> {
    Ok(())
}
