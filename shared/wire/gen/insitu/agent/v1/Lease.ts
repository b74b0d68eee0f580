// Original file: proto/insitu/agent/v1/agent.proto


export interface Lease {
  'runId'?: (string);
  'stepId'?: (string);
  'attempt'?: (number);
  'epoch'?: (number);
}

export interface Lease__Output {
  'runId': (string);
  'stepId': (string);
  'attempt': (number);
  'epoch': (number);
}
