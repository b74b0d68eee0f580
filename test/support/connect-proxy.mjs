/**
 * An HTTP proxy that knows CONNECT and asks for Basic authentication, as a process of its own: what a site has at its
 * border. Prints one line of JSON for each event; the first holds its port.
 *
 *   node test/support/connect-proxy.mjs USER PASSWORD
 */
import { createServer } from "node:http";
import { connect } from "node:net";

const [user, password] = process.argv.slice(2);
const expected = `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;
const say = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

const server = createServer((_, response) => response.writeHead(405).end());
server.on("connect", (request, near, head) => {
  near.on("error", () => near.destroy());
  if (request.headers["proxy-authorization"] !== expected) {
    say({ refused: request.url });
    near.end('HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="site"\r\n\r\n');
    return;
  }
  const { hostname, port } = new URL(`tcp://${request.url}`);
  const far = connect(Number(port), hostname.replace(/^\[|\]$/g, ""), () => {
    say({ opened: request.url });
    near.write("HTTP/1.1 200 Connection established\r\n\r\n");
    far.write(head);
    near.pipe(far).pipe(near);
  });
  far.on("error", () => near.end("HTTP/1.1 502 Bad Gateway\r\n\r\n"));
  near.on("close", () => far.destroy());
});
server.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
process.on("disconnect", () => process.exit());
