/** gRPC says UNAVAILABLE for every failed connection; what TLS said of it tells a person what to do. */

/**
 * Undefined when it is no trouble of certificates.
 *
 * @param said the details of a gRPC error; the words are OpenSSL's, as Node passes them on
 */
export function explainTls(said: string, gateway: string): string | undefined {
  if (/certificate (is not yet valid|has expired)/i.test(said)) {
    return `the certificate of ${gateway} is not valid at this host's time (${said}): check the clocks of both`;
  }
  if (/self.signed certificate|certificate signature failure|unable to (verify|get)/i.test(said)) {
    return (
      `${gateway} shows a certificate that the CA of this agent's enrolment did not issue (${said}): ` +
      "something intercepts TLS, or the control plane has a new CA; in that case enrol again with a new join token"
    );
  }
  if (/altnames|does not match certificate/i.test(said)) {
    return `the certificate of ${gateway} is for another name (${said}): give the gateway a name that it carries`;
  }
  return undefined;
}
