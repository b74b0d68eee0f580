/** Pages for who is not signed in yet, and for who is as the first administrator. */
import { h } from "./dom.js";

/** @param provider null: there are tokens alone */
export function signInView(message, provider) {
  return h(
    "section.sign-in",
    null,
    h("h1", null, "Sign in"),
    message && h("p.note.bad", { role: "alert" }, message),
    provider && [
      h("p", null, "You are sent to ", h("code", null, new URL(provider.issuer).host), " and back."),
      h("a.button.primary", { href: provider.signInUrl, "data-action": "to-provider" }, "Sign in"),
    ],
    provider ? h("details", null, h("summary", null, "With a token"), tokenForm(true)) : tokenForm(false),
  );
}

function tokenForm(second) {
  return [
    h(
      "p",
      null,
      "The server wrote a token into its ",
      h("code", null, "context.json"),
      "; `insitu tokens create` makes others. It stays in this tab.",
    ),
    h(
      "form",
      { "data-action": "sign-in" },
      h("label", { for: "token" }, "Token"),
      h("input", {
        id: "token",
        name: "token",
        type: "password",
        autocomplete: "off",
        required: true,
        spellcheck: "false",
      }),
      h(second ? "button" : "button.primary", { type: "submit" }, "Sign in with the token"),
    ),
  ];
}

/** A click, so that what merely looks at an address does not use it up. */
export function firstAdminView(message) {
  return h(
    "section.sign-in",
    null,
    h("h1", null, "First administrator"),
    message && h("p.note.bad", { role: "alert" }, message),
    h("p", null, "This link makes you the administrator of this server for 12 hours. It can be used once."),
    h("button.primary", { type: "button", "data-action": "first-admin" }, "Become the administrator"),
    h("p", null, h("a", { href: "#/", "data-action": "drop-link" }, "Sign in another way")),
  );
}

/** @param token null until it is made; it is shown once */
export function welcomeView(message, token, address) {
  return h(
    "section.sign-in",
    null,
    h("h1", null, "You are the administrator"),
    h(
      "p",
      null,
      "For 12 hours in this browser. Make a token now with which your command line goes on after that.",
    ),
    message && h("p.note.bad", { role: "alert" }, message),
    token === null
      ? h(
          "form",
          { "data-action": "first-token" },
          h("label", { for: "name" }, "Your name, as records will show it"),
          h("input", {
            id: "name",
            name: "name",
            required: true,
            pattern: "[a-z0-9]([a-z0-9\\-]*[a-z0-9])?",
            title: "lower-case letters, digits and hyphens",
            maxlength: "63",
            autocomplete: "off",
            spellcheck: "false",
          }),
          h("button.primary", { type: "submit" }, "Make a token"),
        )
      : [
          h("p", { role: "status" }, "It is not shown again, and good for 90 days:"),
          h("pre", { id: "first-token" }, `export INSITU_SERVER=${address}\nexport INSITU_TOKEN=${token}`),
        ],
    h("p", null, h("a", { href: "#/" }, "All runs and sites")),
  );
}
