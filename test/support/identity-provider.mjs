/**
 * An OpenID provider of its own process: whoever gives a name at its form is that person, with any password.
 *
 *   node test/support/identity-provider.mjs PORT REDIRECT_URI…   prints `{"issuer": …}` once it listens
 */
import { createServer } from "node:http";
import Provider from "oidc-provider";

const [port, ...redirectUris] = process.argv.slice(2);
const GROUPS = { ada: ["platform", "cn=science,dc=example"], bob: ["science"], eve: [] };

const issuer = `http://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "insitu",
      client_secret: "a-secret-of-the-test",
      redirect_uris: redirectUris,
      grant_types: ["authorization_code", "urn:ietf:params:oauth:grant-type:device_code"],
      response_types: ["code"],
    },
    {
      client_id: "another",
      token_endpoint_auth_method: "none",
      application_type: "native",
      redirect_uris: ["http://127.0.0.1/callback"],
    },
  ],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"], groups: ["groups"] },
  scopes: ["openid", "email", "profile", "groups"],
  features: { devInteractions: { enabled: true }, deviceFlow: { enabled: true } },
  cookies: { keys: ["a-key-of-the-test"] },
  pkce: { required: () => true },
  findAccount: (_context, id) => ({
    accountId: id,
    claims: () => ({
      sub: id,
      email: `${id}@example.org`,
      email_verified: true,
      name: id,
      groups: GROUPS[id] ?? [],
    }),
  }),
});
const server = createServer(provider.callback());
server.listen(Number(port), "127.0.0.1", () => process.send?.({ issuer }));
process.on("disconnect", () => process.exit(0));
