// Original file: proto/insitu/agent/v1/agent.proto


export interface Version {
  'major'?: (number);
  'minor'?: (number);
  'software'?: (string);
  'capabilities'?: (string)[];
}

export interface Version__Output {
  'major': (number);
  'minor': (number);
  'software': (string);
  'capabilities': (string)[];
}
