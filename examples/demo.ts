/** What a runnable example tells `insitu dev`: the default export of its `demo.mjs`. Types only. */

export interface Demo {
  name: string;
  /** The question that the pipeline answers, in one sentence. */
  title: string;
  /** Documents to apply, in this order, as absolute paths. */
  documents: string[];
  /** The pipeline to run. */
  pipeline: string;
  /** A document that must be refused, as an absolute path; null when the example has none. */
  refused: string | null;
  /** The sites to start, each with an agent. A dataset's path is relative to the site's directory. */
  environments: Record<string, { datasets: Record<string, string> }>;
  /** Variables that each site gives to its steps, on top of PATH. */
  stepEnv: Record<string, string>;
  /** Writes each site's data into `<directory>/<environment>/`. Does nothing when it is there already. */
  setUp(directory: string): Promise<SiteData[]>;
  /** Compares the outputs of a run, parsed, by step and output, with the answer over the pooled data. */
  compare(outputs: Record<string, Record<string, unknown>>): Promise<Comparison>;
}

export interface SiteData {
  environment: string;
  dataset: string;
  rows: number;
  bytes: number;
}

export interface Comparison {
  rows: { name: string; unit: string; federated: number; pooled: number }[];
  /** What `difference` may be. */
  tolerance: number;
  /** Largest relative difference over the rows. */
  difference: number;
  equal: boolean;
}
