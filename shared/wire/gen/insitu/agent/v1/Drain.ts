// Original file: proto/insitu/agent/v1/agent.proto


export interface Drain {
  'reconnectAfterMs'?: (number);
  'reason'?: (string);
  'gateways'?: (string)[];
}

export interface Drain__Output {
  'reconnectAfterMs': (number);
  'reason': (string);
  'gateways': (string)[];
}
