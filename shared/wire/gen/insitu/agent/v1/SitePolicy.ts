// Original file: proto/insitu/agent/v1/agent.proto


export interface SitePolicy {
  'digest'?: (string);
  'trouble'?: (string);
}

export interface SitePolicy__Output {
  'digest': (string);
  'trouble': (string);
}
