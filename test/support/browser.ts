/**
 * As much of a browser as signing in needs: cookies by host and not by port, as browsers keep them, redirects, forms, and
 * the headers that say from where a request comes.
 */
export interface Page {
  url: URL;
  status: number;
  body: string;
  headers: Headers;
  /** Every address on the way, the last one included. */
  trail: string[];
}

const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const REDIRECTS_MAX = 20;

export class Browser {
  /** By host name: name → value, and the whole header as it came. */
  readonly cookies = new Map<string, Map<string, { value: string; header: string }>>();

  /** A navigation, as by a click: with the redirects that follow, until `stop` says of one that it is far enough. */
  async visit(address: string, stop: (url: URL) => boolean = () => false): Promise<Page> {
    return await this.#navigate(new URL(address), { method: "GET" }, stop);
  }

  /** Sends the first form of the page. */
  async submit(page: Page, fields: Record<string, string>, stop?: (url: URL) => boolean): Promise<Page> {
    const form = /<form[^>]*>[\s\S]*?<\/form>/i.exec(page.body)?.[0];
    if (form === undefined) throw new Error(`no form at ${page.url}: ${page.body.slice(0, 500)}`);
    const action = /action="([^"]*)"/i.exec(form)?.[1] ?? "";
    const attribute = (input: string, name: string) => new RegExp(`${name}="([^"]*)"`).exec(input)?.[1] ?? "";
    const sent = new URLSearchParams();
    for (const [input] of form.matchAll(/<input[^>]*type="hidden"[^>]*>/gi))
      sent.append(attribute(input, "name"), attribute(input, "value"));
    for (const [name, value] of Object.entries(fields)) sent.set(name, value);
    const body = sent.toString();
    const url = new URL(action.replaceAll("&amp;", "&"), page.url);
    return await this.#navigate(url, { method: "POST", body }, stop ?? (() => false));
  }

  /** A request of a script on a page of `from`; its own origin unless it is named. */
  async fetch(address: string, init: RequestInit = {}, from = new URL(address).origin): Promise<Response> {
    const url = new URL(address);
    const same = from === url.origin;
    const headers = new Headers(init.headers);
    headers.set("sec-fetch-site", same ? "same-origin" : "cross-site");
    if (init.method !== undefined && init.method !== "GET") headers.set("origin", from);
    headers.set("cookie", this.#cookieHeader(url));
    const response = await fetch(url, { ...init, headers, redirect: "manual" });
    this.#keep(url, response);
    return response;
  }

  cookie(url: string, name: string): string | undefined {
    return this.cookies.get(new URL(url).hostname)?.get(name)?.value;
  }

  plant(url: string, name: string, value: string): void {
    const { hostname } = new URL(url);
    const jar = this.cookies.get(hostname) ?? new Map();
    jar.set(name, { value, header: "" });
    this.cookies.set(hostname, jar);
  }

  async #navigate(first: URL, init: RequestInit, stop: (url: URL) => boolean): Promise<Page> {
    let url = first;
    let next = init;
    const trail: string[] = [];
    for (let hops = 0; hops < REDIRECTS_MAX; hops++) {
      trail.push(url.href);
      const blank = { url, status: 0, body: "", headers: new Headers(), trail };
      if (stop(url)) return blank;
      const headers = new Headers({ cookie: this.#cookieHeader(url), "accept-encoding": "gzip" });
      if (next.body) headers.set("content-type", "application/x-www-form-urlencoded");
      const response = await fetch(url, { ...next, headers, redirect: "manual" });
      this.#keep(url, response);
      const location = response.headers.get("location");
      if (!REDIRECTS.has(response.status) || location === null) {
        return { ...blank, status: response.status, body: await response.text(), headers: response.headers };
      }
      await response.body?.cancel();
      url = new URL(location, url);
      next = { method: "GET" };
    }
    throw new Error(`more than ${REDIRECTS_MAX} redirects: ${trail.join(" ")}`);
  }

  #keep(url: URL, response: Response): void {
    const jar = this.cookies.get(url.hostname) ?? new Map<string, { value: string; header: string }>();
    for (const header of response.headers.getSetCookie()) {
      const [pair = "", ...attributes] = header.split(";");
      const [name = "", value = ""] = [pair.slice(0, pair.indexOf("=")), pair.slice(pair.indexOf("=") + 1)];
      const ended = attributes.some((one) => /^\s*(max-age=0|expires=thu, 01 jan 1970)/i.test(one));
      if (ended || value === "") jar.delete(name);
      else jar.set(name, { value, header });
    }
    this.cookies.set(url.hostname, jar);
  }

  #cookieHeader(url: URL): string {
    return [...(this.cookies.get(url.hostname) ?? [])]
      .map(([name, { value }]) => `${name}=${value}`)
      .join("; ");
  }
}
