import { describe, expect, test } from "vitest";
import { testApi } from "./api.fixture.ts";
import { loadConsole } from "./console.ts";

describe("the console", async () => {
  const assets = await loadConsole();
  const { app } = testApi({ console: assets });

  test.each([...assets.keys()])(
    "%s is served without a token and may load nothing from elsewhere",
    async (path) => {
      const response = await app.request(path);
      expect(response.status).toBe(200);
      const csp = response.headers.get("content-security-policy") ?? "";
      expect(csp).toContain("script-src 'self';");
      expect(csp).toContain("frame-ancestors 'none'");
      expect(csp).not.toMatch(/unsafe|\*|https?:/);
      expect(response.headers.get("x-content-type-options")).toBe("nosniff");
    },
  );

  test("is not sent again while it is the same", async () => {
    const first = await app.request("/console.js");
    const etag = first.headers.get("etag") ?? "";
    const again = await app.request("/console.js", { headers: { "if-none-match": etag } });
    expect(again.status).toBe(304);
    expect(await again.text()).toBe("");
  });

  test("has every module and style that it names, and no inline script or style that the browser would refuse", () => {
    const page = assets.get("/")?.body ?? "";
    const named = [...page.matchAll(/(?:src|href)="([^"#]+)"/g)].map((match) => `/${match[1]}`);
    const modules = [...assets].filter(([path]) => path.endsWith(".js"));
    for (const [, { body }] of modules) {
      named.push(...[...body.matchAll(/from "\.\/([^"]+)"/g)].map((match) => `/${match[1]}`));
    }
    expect(named.length).toBeGreaterThan(5);
    expect(named.filter((path) => !assets.has(path))).toEqual([]);
    expect(page).not.toMatch(/<style|<script[^>]*>[^<]|\son\w+=|\sstyle=/);
  });

  test("lets text in only as text", () => {
    for (const [path, { body }] of assets) {
      expect(body, path).not.toMatch(/innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/);
    }
  });
});
