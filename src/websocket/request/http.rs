//! Requests and responses in the types of the crate `http`, for hyper, axum and what is built on
//! them.

use http::header::{HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Version};

use super::RequestHead;
use super::answer::Answer;
use crate::websocket::config::ServerConfig;
use crate::websocket::error::UpgradeError;
use crate::websocket::upgrade::UpgradeRequest;

impl UpgradeRequest {
    /// [`UpgradeRequest::check`] for a request of hyper or axum. `complete` adds to the head what
    /// an HTTP request does not say: the addresses, and whether it came over TLS.
    ///
    /// ```
    /// # fn answer(
    /// #     request: &http::Request<()>,
    /// #     remote: std::net::SocketAddr,
    /// #     config: &anabranch::websocket::ServerConfig,
    /// # ) -> http::Response<String> {
    /// use anabranch::websocket::UpgradeRequest;
    ///
    /// match UpgradeRequest::check_http(request, |head| head.with_remote_address(remote), config) {
    ///     Ok(upgrade) => upgrade.http_response().map(|()| String::new()),
    ///     Err(error) => error.answer().http_response(),
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`UpgradeError`]; its [`answer`](UpgradeError::answer) as [`Answer::http_response`] is the
    /// response to send. [`UpgradeError::UnsupportedHttp`] for HTTP/2 and HTTP/3, whose WebSockets
    /// (RFC 8441, RFC 9220) are no upgrades.
    pub fn check_http<B>(
        request: &Request<B>,
        complete: impl FnOnce(RequestHead<'_>) -> RequestHead<'_>,
        config: &ServerConfig,
    ) -> Result<Self, UpgradeError> {
        if request.version() > Version::HTTP_11 {
            return Err(UpgradeError::UnsupportedHttp);
        }
        let target = request.uri().to_string();
        // Every field: the check decides which of them may be repeated.
        let headers = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()));
        let mut head = RequestHead::new(request.method().as_str(), &target, headers);
        head.is_http_1_0 = request.version() < Version::HTTP_11;
        Self::check(&complete(head), config)
    }

    /// The response that completes the upgrade: status 101 with
    /// [`UpgradeRequest::response_headers`].
    pub fn http_response(&self) -> Response<()> {
        respond(
            StatusCode::SWITCHING_PROTOCOLS,
            &self.response_headers(),
            (),
        )
    }
}

impl Answer {
    /// The response with its headers, which close the connection, and its body of plain text.
    pub fn http_response(&self) -> Response<String> {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let mut response = respond(status, self.headers(), self.body().to_owned());
        response.headers_mut().insert(
            http::header::CONNECTION,
            HeaderValue::from_static(self.connection()),
        );
        response.headers_mut().insert(
            http::header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    }
}

fn respond<B>(status: StatusCode, headers: &[(&'static str, &str)], body: B) -> Response<B> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        // All of them are tokens and base64.
        if let Ok(value) = HeaderValue::from_str(value) {
            response
                .headers_mut()
                .insert(HeaderName::from_static(name), value);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use http::{Method, Request, StatusCode, Version};

    use crate::identity::Identity;
    use crate::websocket::{
        Authentication, RequestPolicy, ServerConfig, UpgradeError, UpgradeRequest,
    };

    fn config() -> ServerConfig {
        ServerConfig::new(Authentication::noise(Identity::generate()))
    }

    fn request(uri: &str, config: &ServerConfig) -> Request<()> {
        Request::builder()
            .uri(uri)
            .header("Host", "example.org")
            .header("Connection", "keep-alive, Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header(
                "Sec-WebSocket-Protocol",
                config.authentication.subprotocol(),
            )
            .body(())
            .expect("a request")
    }

    fn check(request: &Request<()>, config: &ServerConfig) -> Result<UpgradeRequest, UpgradeError> {
        UpgradeRequest::check_http(request, |head| head, config)
    }

    /// The key and its answer are those of RFC 6455 section 1.3.
    #[test]
    fn a_request_of_http_is_checked_and_answered() {
        let config = config();
        let upgrade = check(&request("/", &config), &config).expect("an upgrade");
        let response = upgrade.http_response();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let header = |name: &str| response.headers().get(name).expect(name).to_str().unwrap();
        assert_eq!(
            header("sec-websocket-accept"),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(header("upgrade"), "websocket");
        assert_eq!(header("connection"), "Upgrade");
        assert_eq!(
            header("sec-websocket-protocol"),
            config.authentication.subprotocol()
        );
    }

    #[test]
    fn the_versions_that_have_no_upgrade_are_refused() {
        let config = config();
        for (version, status) in [
            (Version::HTTP_09, 426),
            (Version::HTTP_10, 426),
            (Version::HTTP_2, 505),
            (Version::HTTP_3, 505),
        ] {
            let mut request = request("/", &config);
            *request.version_mut() = version;
            let error = check(&request, &config).expect_err("no upgrade");
            assert_eq!(error.status(), status, "{version:?}");
        }
    }

    #[test]
    fn repeated_headers_and_other_methods_are_refused_with_their_headers() {
        let config = config();
        let mut repeated = request("/", &config);
        let key = "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap();
        repeated.headers_mut().append("Sec-WebSocket-Key", key);
        assert_eq!(
            check(&repeated, &config),
            Err(UpgradeError::RepeatedHeader("sec-websocket-key"))
        );
        let mut post = request("/", &config);
        *post.method_mut() = Method::POST;
        let error = check(&post, &config).expect_err("not a GET");
        let response = error.answer().http_response();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(response.headers()["allow"], "GET");
        assert_eq!(response.headers()["connection"], "close");
        assert_eq!(
            response.headers()["content-type"],
            "text/plain; charset=utf-8"
        );
        assert_eq!(response.body(), error.answer().body());
    }

    /// RFC 9110 section 7.8.
    #[test]
    fn a_response_that_names_an_upgrade_has_it_among_the_options_of_the_connection() {
        let config = config();
        let mut request = request("/", &config);
        request.headers_mut().remove("upgrade");
        let response = check(&request, &config).expect_err("no upgrade").answer();
        let response = response.http_response();
        assert_eq!(response.status(), StatusCode::UPGRADE_REQUIRED);
        assert_eq!(response.headers()["upgrade"], "websocket");
        assert_eq!(response.headers()["connection"], "close, upgrade");
    }

    /// The whole target is checked, not its path alone (RFC 9112 section 3.2.2).
    #[test]
    fn a_target_in_absolute_form_has_to_agree_with_the_host() {
        let config = config();
        assert!(check(&request("http://example.org/", &config), &config).is_ok());
        let error = check(&request("http://elsewhere.example/", &config), &config);
        assert!(
            matches!(error, Err(UpgradeError::Malformed(_))),
            "{error:?}"
        );
    }

    #[test]
    fn what_the_server_adds_to_the_head_reaches_the_hook() {
        let mut config = config();
        config.requests = RequestPolicy::default().with_hook(|head| match head.remote_address() {
            Some(_) => Ok(()),
            None => Err(UpgradeError::refused(403, "who are you")),
        });
        let request = request("/", &config);
        assert_eq!(check(&request, &config).map_err(|e| e.status()), Err(403));
        let remote = ([192, 0, 2, 1], 1).into();
        let checked =
            UpgradeRequest::check_http(&request, |head| head.with_remote_address(remote), &config);
        assert!(checked.is_ok());
    }
}
