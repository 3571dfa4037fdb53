use std::time::Duration;

use ureq::Agent;

/// A client for other people's servers. It limits silence and not the whole time: a large file may take long. A status of failure is an
/// answer, whose body may say why.
pub fn client() -> Agent {
    let config = Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .http_status_as_error(false)
        .user_agent("kiln")
        .build();
    config.new_agent()
}
