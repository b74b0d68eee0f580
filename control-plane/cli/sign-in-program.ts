/** The help of `insitu auth login`, `logout` and `whoami`. */
import type { Command } from "commander";
import type { Invocation } from "./invocation.ts";

type Action = (invocation: Invocation) => Promise<number>;

interface Parts {
  /** What a command does, loaded when it is called. */
  act(load: () => Promise<Action>): (...given: unknown[]) => Promise<void>;
  examples(command: Command, lines: readonly string[], note?: string): void;
}

export function signInCommands(auth: Command, { act, examples }: Parts): void {
  const commands = () => import("./commands/sign-in.ts");
  const login = auth
    .command("login")
    .description("sign in at the server's identity provider, in a browser on any machine")
    .action(act(async () => (await commands()).login));
  examples(
    login,
    ["insitu auth login --server https://insitu.example.org:7070 --ca-file ca.pem", "insitu auth login"],
    "The token is good for 12 hours. It is kept in ~/.config/insitu/context.json (or below XDG_CONFIG_HOME), mode 0600.",
  );
  const logout = auth
    .command("logout")
    .description("end the session of the command line, everywhere")
    .action(act(async () => (await commands()).logout));
  examples(logout, ["insitu auth logout"]);
  const whoAmI = auth
    .command("whoami")
    .description("your name, your roles and your groups")
    .action(act(async () => (await import("./commands/access.ts")).whoAmI));
  examples(whoAmI, ["insitu auth whoami", "insitu auth whoami -o json"]);
}
