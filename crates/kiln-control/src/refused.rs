//! Why a call is not carried out. A refused call has changed nothing.

use std::net::SocketAddr;

use kiln_model::api::ApiError;
use kiln_model::{EnvName, ProjectName, ServiceKey, StateId};
use kiln_plan::Refusal;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The service is another project's.
    OtherProject {
        service: ServiceKey,
        theirs: ProjectName,
        ours: ProjectName,
    },
    /// Something was decided about the environment since the plan was made.
    Stale {
        environment: EnvName,
        parent: StateId,
        current: StateId,
    },
    /// The planner does not take it now.
    Refusal {
        service: ServiceKey,
        refusal: Refusal,
    },
    NotFound {
        service: ServiceKey,
    },
    /// The plan's changes and its spec say different things.
    Contradiction {
        service: ServiceKey,
    },
    /// Two services want the same address.
    ListenTaken {
        address: SocketAddr,
        service: ServiceKey,
        by: ServiceKey,
    },
    /// The release or policy has members that a newer kiln knows and this one does not.
    Unknown {
        service: ServiceKey,
        members: Vec<String>,
    },
    /// The shell could not prepare what the call needs.
    Prepare(ApiError),
    /// The journal can't be written at present.
    Journal {
        problem: String,
    },
}
