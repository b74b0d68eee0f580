export declare const OLDEST: string;
export declare const INSTALL_HELP: string;
export declare function compareVersions(a: string, b: string): number;
export declare function findNatsServer(options?: {
  env?: Record<string, string | undefined>;
  install?: boolean;
  say?: (line: string) => void;
  alsoIn?: string[];
}): Promise<{ path: string; version: string }>;
