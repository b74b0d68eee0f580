/**
 * Who is signed in. By a session, whose cookie no script can read, or by a token, which lives in this tab alone and
 * goes away with it.
 */

const TOKEN_KEY = "insitu.token";
const BACK_KEY = "insitu.back";
let me = null;
let linkSecret = null;
let notice = null;

/** Why a sign-in failed, by the word that the server puts into the address. */
const FAILURES = {
  away: "The identity provider cannot be reached now. Try again in a moment; the server's log says more.",
  refused: "The identity provider did not confirm who you are. Sign in again; the server's log says more.",
  unfinished: "This sign-in was begun in another browser, or too long ago. Begin again.",
  "too-often": "Too many sign-ins from your address have failed. Try again in a minute.",
  broken: "The sign-in failed; the server's log says why.",
};

/** Takes secrets out of the address before anything else can see them there: history, a screenshot, a shared link. */
export function takeFromAddress() {
  const failure = /^#\/sign-in\/([a-z-]+)$/.exec(location.hash)?.[1];
  const fragment = new URLSearchParams(location.hash.slice(1));
  const [token, link] = [fragment.get("token"), fragment.get("first-admin")];
  if (failure === undefined && token === null && link === null) return;
  if (failure !== undefined && Object.hasOwn(FAILURES, failure)) notice = FAILURES[failure];
  if (token !== null) signInWith(token);
  if (link !== null) linkSecret = link;
  history.replaceState(null, "", fragment.has("run") ? `#/runs/${fragment.get("run")}` : "#/");
}

export function signInWith(token) {
  me = null;
  sessionStorage.setItem(TOKEN_KEY, token.trim());
}

export const tokenOfTab = () => sessionStorage.getItem(TOKEN_KEY);
export const isSignedIn = () => me !== null || tokenOfTab() !== null;
export const who = () => me;
/** The link of the first administrator, when that is what was opened. */
export const hasLink = () => linkSecret !== null;
export const dropLink = () => {
  linkSecret = null;
};

/** Said once. */
export function takeNotice() {
  const text = notice;
  notice = null;
  return text;
}

/** Asks who the cookie or the token is; nobody is signed in when the server does not know. */
export async function loadMe() {
  const token = tokenOfTab();
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  const response = await fetch("/v1/access/whoami", { headers, cache: "no-store" }).catch(() => null);
  me = response?.ok ? await response.json() : null;
  if (me === null || token !== null) return;
  const back = sessionStorage.getItem(BACK_KEY);
  sessionStorage.removeItem(BACK_KEY);
  if (back !== null && /^#\/runs\//.test(back) && /^(#\/?)?$/.test(location.hash))
    history.replaceState(null, "", back);
}

/** `{ issuer, signInUrl }`, or null when the server knows no identity provider. */
export async function identityProvider() {
  const response = await fetch("/auth/config", { cache: "no-store" }).catch(() => null);
  return response?.ok ? (await response.json()).oidc : null;
}

/** What was looked at is shown again after the sign-in. */
export function keepPlace() {
  sessionStorage.setItem(BACK_KEY, location.hash);
}

/** @returns null, or what went wrong in words */
export async function redeemLink() {
  const response = await fetch("/auth/first-admin", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ secret: linkSecret }),
  }).catch(() => null);
  if (response === null) return "The server does not answer.";
  if (!response.ok)
    return (await response.json().catch(() => ({}))).detail ?? `The server answered ${response.status}.`;
  linkSecret = null;
  sessionStorage.removeItem(TOKEN_KEY);
  await loadMe();
  return null;
}

/** Of the tab; the server's part is over already, or there was none. */
export function forget() {
  me = null;
  sessionStorage.removeItem(TOKEN_KEY);
}

/** A session ends everywhere; a token only leaves this tab. @returns false when the server did not answer */
export async function signOut() {
  if (tokenOfTab() === null) {
    const response = await fetch("/auth/sign-out", { method: "POST" }).catch(() => null);
    if (!response?.ok) return false;
  }
  forget();
  return true;
}
