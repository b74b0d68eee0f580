import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { rootCertificates } from "node:tls";
import { expect, test } from "vitest";
import { testDirectory } from "./agent.fixture.ts";
import { loadConfig } from "./config.ts";

const rejection = async (promise: Promise<unknown>): Promise<{ code: string; message: string }> =>
  await promise.then(
    () => Promise.reject(new Error("it was accepted")),
    (err: { code: string; message: string }) => err,
  );

test("flags alone are enough", async () => {
  const config = await loadConfig(
    {
      "state-dir": "/tmp/x",
      name: "a1",
      slots: "3",
      dataset: ["patients=/srv/p=1.parquet"],
      label: ["rack=7"],
    },
    { PATH: "/bin" },
  );
  expect(config).toMatchObject({
    stateDir: "/tmp/x",
    name: "a1",
    slots: 3,
    executors: ["process", "noop", "container"],
    datasets: { patients: "/srv/p=1.parquet" },
    labels: { rack: "7" },
    stepEnv: { PATH: "/bin", LANG: "C.UTF-8" },
  });
  expect(Object.isFrozen(config)).toBe(true);
});

test("where secrets come from is read, with paths relative to the file", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  const text = `
stateDir: state
secrets:
  a: { from: file, path: secrets/a }
  b: { from: exec, argv: [pass, show, b] }
  c: { from: vault, path: apps/c, field: value }
vault: { address: "https://vault.example.org", tokenFile: vault-token, caFile: ca.pem }
`;
  writeFileSync(file, text);
  const { secrets, vault } = await loadConfig({ config: file }, {});
  expect(secrets).toEqual({
    a: { from: "file", path: join(directory.path, "secrets/a") },
    b: { from: "exec", argv: ["pass", "show", "b"], timeoutMs: 10_000, passEnv: [] },
    c: { from: "vault", mount: "secret", path: "apps/c", field: "value" },
  });
  expect(vault).toMatchObject({
    tokenFile: join(directory.path, "vault-token"),
    caFile: join(directory.path, "ca.pem"),
  });
  writeFileSync(file, text.replace(/vault: .*/, "").replace("exec", "shell"));
  expect((await rejection(loadConfig({ config: file }, {}))).message).toMatch(/secrets\.b\.from: /);
  writeFileSync(file, text.replace(/vault: .*/, ""));
  expect((await rejection(loadConfig({ config: file }, {}))).message).toMatch(
    /secrets\.c: comes from a vault, and the key vault/,
  );
});

test("paths in a file are relative to it; the environment wins over the file, and flags over both", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  writeFileSync(
    file,
    [
      "stateDir: state",
      "name: from-file",
      "slots: 2",
      "logLevel: warn",
      "datasets: { penguins: data/penguins.json, remote: s3://bucket/key }",
      "stepEnv: { NODE_PATH: /opt/modules }",
    ].join("\n"),
  );
  const config = await loadConfig({ config: file, slots: "9" }, { INSITU_LOG_LEVEL: "debug" });
  expect(config).toMatchObject({
    stateDir: join(directory.path, "state"),
    name: "from-file",
    slots: 9,
    logLevel: "debug",
    datasets: { penguins: join(directory.path, "data/penguins.json"), remote: "s3://bucket/key" },
  });
  expect(config.stepEnv).toMatchObject({ NODE_PATH: "/opt/modules" });
});

test("every mistake is told at once, in the file and in the flags", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.json");
  writeFileSync(file, JSON.stringify({ slots: 0, executors: ["docker"], datasets: [], colour: "red" }));
  const { code, message } = await rejection(loadConfig({ config: file, label: "rack" }, {}));
  expect(code).toBe("request.invalid");
  for (const key of [
    "stateDir",
    "slots",
    "executors.0",
    "datasets",
    "colour",
    '--label takes name=value, not "rack"',
  ])
    expect(message).toContain(key);
});

test.each([
  ["a: [", /is not YAML/],
  ["- a\n- b\n", /must hold keys and values/],
])("a file that says %j is refused", async (text, expected) => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  writeFileSync(file, text);
  expect((await rejection(loadConfig({ config: file }, {}))).message).toMatch(expected);
});

test("a file that is not there is named", async () => {
  expect((await rejection(loadConfig({ config: "/nowhere/agent.yaml" }, {}))).message).toMatch(/\/nowhere/);
});

test("the site's policy is named by the file or a flag, and by nothing in the environment", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  writeFileSync(file, "stateDir: state\nname: a1\nsitePolicy: policy.yaml\n");
  const env = { INSITU_SITE_POLICY: "/tmp/other.yaml", SITE_POLICY: "/tmp/other.yaml" };
  expect((await loadConfig({ config: file }, env)).sitePolicy).toBe(join(directory.path, "policy.yaml"));
  const { sitePolicy } = await loadConfig({ config: file, "site-policy": "/etc/insitu/policy.yaml" }, env);
  expect(sitePolicy).toBe("/etc/insitu/policy.yaml");
  expect((await loadConfig({ "state-dir": "/tmp/x", name: "a1" }, env)).sitePolicy).toBeUndefined();
  await expect(loadConfig({ config: file, "site-policy": "" }, env)).rejects.toThrow(/sitePolicy/);
});

test("the keys of the site's team lie beside the configuration, and are none without a policy", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  writeFileSync(file, "stateDir: state\nname: a1\nsitePolicy: policy.yaml\nsitePolicyKey: team.pub\n");
  const env = { INSITU_SITE_POLICY_KEY: "/elsewhere" };
  expect((await loadConfig({ config: file }, env)).sitePolicyKey).toBe(join(directory.path, "team.pub"));
  const flags = { "state-dir": "/tmp/x", name: "a1", "site-policy-key": "/etc/insitu/team.pub" };
  await expect(loadConfig(flags, env)).rejects.toThrow(/sitePolicyKey: there is no sitePolicy/);
});

test("a proxy of the file wins over that of the environment; its password is in a file beside it", async () => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  const ca = join(directory.path, "site-ca.pem");
  writeFileSync(ca, `Issuer: the site\n${rootCertificates[0]}\n${rootCertificates[1]}\n`);
  const proxy =
    "proxy: { url: 'http://proxy.example:3128', username: site-7, passwordFile: secret, noProxy: [.corp] }";
  writeFileSync(file, `stateDir: s\nname: a1\nca: [site-ca.pem]\n${proxy}\n`);
  const env = { HTTPS_PROXY: "http://other.example:8080" };
  const config = await loadConfig({ config: file }, env);
  expect(config.proxy).toMatchObject({
    address: { host: "proxy.example", port: 3128 },
    username: "site-7",
    passwordFile: join(directory.path, "secret"),
    noProxy: [".corp"],
  });
  expect(config.siteCaPem.match(/BEGIN CERTIFICATE/g)).toHaveLength(2);
  expect((await loadConfig({ "state-dir": "s", name: "a1" }, env)).proxy?.address.host).toBe("other.example");
  expect((await loadConfig({ "state-dir": "s", name: "a1" }, {})).proxy).toBeUndefined();
});

test.each<[string, NodeJS.ProcessEnv, RegExp]>([
  ["proxy: { url: 'socks5://p.example' }", {}, /proxy\.url: is like http:/],
  ["proxy: { url: 'http://a:b@p.example' }", {}, /proxy\.url: holds a password; use passwordFile/],
  [
    "ca: [agent.yaml]",
    {},
    /ca: .*agent\.yaml is no file of PEM certificates \(there is no certificate in it\)/,
  ],
  ["ca: [gone.pem]", {}, /ca: .*gone\.pem is no file of PEM certificates/],
  ["logLevel: warn", { HTTPS_PROXY: "socks5://p.example" }, /HTTPS_PROXY is not like http:/],
])("%s with %j is refused", async (line, env, expected) => {
  using directory = testDirectory();
  const file = join(directory.path, "agent.yaml");
  writeFileSync(file, `stateDir: s\nname: a1\n${line}\n`);
  expect((await rejection(loadConfig({ config: file }, env))).message).toMatch(expected);
});
