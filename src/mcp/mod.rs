//! Model Context Protocol: what agents can call here, for whoever brings the transport. Two revisions are spoken, 2026-07-28 (each
//! request stands alone) and those with a handshake before it; rmcp knows their difference.
//!
//! ```text
//! tools/call ──tools──> TaskRequest or JudgeRequest ──Host──> TaskResult or JudgeResponse ──results──> content, structuredContent
//! ```
//! What a program does is a result, whatever its exit status. `isError` says that nothing ran, in words that a model can act on.

mod results;
mod tools;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use futures_util::future::{Either, select};
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation, ListToolsResult,
    PaginatedRequestParams, ServerCapabilities, ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};

use crate::image::Image;
use crate::judge::{JudgeRequest, JudgeResponse};
use crate::task::{Bounds, ImageName, TaskRequest, TaskResult};
use tools::Call;

/// Why nothing ran.
pub type Refusal = String;

/// What runs the calls.
pub trait Host: Send + Sync + 'static {
    /// The images that are here now.
    fn images(&self) -> Result<Arc<Vec<Image>>, Refusal>;
    /// What tasks may use.
    fn bounds(&self) -> Arc<Bounds>;
    fn default_image(&self) -> &ImageName;
    /// Cases of one judgement.
    fn max_cases(&self) -> usize;
    /// Dropping the future ends the task.
    fn run(&self, task: TaskRequest) -> impl Future<Output = Result<TaskResult, Refusal>> + Send;
    fn judge(&self, request: JudgeRequest) -> impl Future<Output = Result<JudgeResponse, Refusal>> + Send;
}

/// The protocol's server, around what runs its calls.
pub struct Server<H>(Arc<H>);

impl<H> Clone for Server<H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<H: Host> Server<H> {
    pub fn new(host: Arc<H>) -> Self {
        Self(host)
    }

    async fn answer(&self, call: Call) -> Result<CallToolResult, Refusal> {
        let host = &self.0;
        match call {
            Call::Run(task) => results::of_task(host.run(*task).await?),
            Call::Judge(request) => results::of_judgement(host.judge(*request).await?),
            Call::ListLanguages => Ok(results::of_images(&host.images()?, host.default_image())),
        }
    }
}

impl<H: Host> ServerHandler for Server<H> {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
            .with_server_info(Implementation::new("faber", env!("CARGO_PKG_VERSION")))
            .with_instructions(tools::INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all(&self.0.bounds(), self.0.max_cases())))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let arguments = request.arguments.unwrap_or_default();
        let call = match Call::read(&request.name, arguments, &self.0.bounds(), self.0.max_cases()) {
            Some(call) => call,
            None => return Err(ErrorData::invalid_params(tools::unknown(&request.name), None)),
        };
        let work = pin!(async { self.answer(call?).await });
        let cancelled = pin!(context.ct.cancelled());
        let refusal = match select(work, cancelled).await {
            Either::Left((Ok(result), _)) => return Ok(result.into()),
            Either::Left((Err(refusal), _)) => refusal,
            // Nobody waits for it any more.
            Either::Right(_) => "cancelled".into(),
        };
        Ok(CallToolResult::error(vec![ContentBlock::text(refusal)]).into())
    }
}
