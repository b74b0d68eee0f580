/** What the command line takes from the environment. */
import { homedir } from "node:os";
import { join } from "node:path";

export interface Settings {
  /** INSITU_SERVER */
  server: string | null;
  /** INSITU_TOKEN */
  token: string | null;
  /** INSITU_CA_FILE */
  caFile: string | null;
  /** INSITU_BACKUP_PASSPHRASE */
  backupPassphrase: string | null;
  /** The file to fall back on: `~/.config/insitu/context.json`, or below XDG_CONFIG_HOME. */
  userContextFile: string;
  cwd: string;
  /** NO_COLOR is set, or the terminal is "dumb". https://no-color.org */
  noColor: boolean;
}

export function readSettings(env: NodeJS.ProcessEnv, cwd: string): Settings {
  const configHome = env.XDG_CONFIG_HOME || join(homedir(), ".config");
  return {
    server: env.INSITU_SERVER || null,
    token: env.INSITU_TOKEN || null,
    caFile: env.INSITU_CA_FILE || null,
    backupPassphrase: env.INSITU_BACKUP_PASSPHRASE || null,
    userContextFile: join(configHome, "insitu", "context.json"),
    cwd,
    noColor: Boolean(env.NO_COLOR) || env.TERM === "dumb",
  };
}
